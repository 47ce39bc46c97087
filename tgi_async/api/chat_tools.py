"""What a chat asks about tools, and how its answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tgi_async.api.constraint import term_of
from tgi_async.api.form import Form
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.tools import AllowedTools, AnyTool, NamedTool, Tool
from tgi_async.api.service import Service
from tgi_async.errors import ToolError
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.constraint import (
    IsSpecial,
    after_thoughts,
    arguments_schema,
    calls_or,
    forced_calls,
)
from tgi_async.text.tools.format import Format
from tgi_async.text.tools.formats import JSON, format_named
from tgi_async.text.tools.parser import Held, Parser
from tgi_async.text.tools.tagged import NotForced
from tgi_async.text.tools.templates import opens_thoughts

MOST_TOOLS = 128
"""As at OpenAI."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools that the model may call, in the form that templates know.

    `forced`: those of which it must call one; None: it may also answer in words. `parallel`:
    whether there may be several calls.
    """

    tools: Sequence[Mapping[str, Any]]
    forced: Sequence[Mapping[str, Any]] | None
    parallel: bool

    @property
    def schemas(self) -> dict[str, Any]:
        """Those of the parameters, by the functions' names."""
        functions = [tool["function"] for tool in self.tools]
        return {function["name"]: function.get("parameters") for function in functions}


def offer_of(body: ChatRequest, *, strict_tgi: bool) -> Offer | None:
    """The tools on offer; None if there are none, or they are not to be called.

    Raises:
        ToolError: the tools, the choice among them and the form of the answer do not fit together.
    """
    if strict_tgi and body.response_format is not None and body.tools is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    word, name = _choice_of(body, strict_tgi=strict_tgi)
    if not body.tools:
        if word in ("named", "required") and not strict_tgi:
            raise ToolError("`tool_choice` wants a call, and there are no `tools` to call")
        return None
    if word == "none":
        return None
    if not strict_tgi and len(body.tools) > MOST_TOOLS:  # a rule that TGI does not have
        raise ToolError(f"at most {MOST_TOOLS} tools can be offered. Given: {len(body.tools)}")
    tools = [shown_tool(tool) for tool in body.tools]
    if isinstance(body.tool_choice, AllowedTools):
        tools = _among(tools, [one.wanted for one in body.tool_choice.wanted.tools])
        if not tools:
            if word == "auto":
                return None
            raise ToolError("`tool_choice` wants a call, and allows no tool")
    if word == "named":
        named = [tool for tool in tools if tool["function"]["name"] == name][:1]
        if not named:
            raise ToolError(f"Tool with name {name} not found")
        return Offer(tools, named, parallel=False)
    forced = tools if word == "required" else None
    return Offer(tools, forced, parallel=body.parallel_tool_calls is not False)


def _choice_of(
    body: ChatRequest, *, strict_tgi: bool
) -> tuple[Literal["auto", "none", "required", "named"], str]:
    """The kind of choice among tools, and a name if it is by name."""
    choice = body.tool_choice
    if isinstance(choice, NamedTool):
        return "named", choice.wanted
    if isinstance(choice, AllowedTools):
        return choice.wanted.mode, ""
    if choice is None or choice == "auto":
        return "auto", ""
    if choice == "none":
        return "none", ""
    names = {tool["function"]["name"] for tool in body.tools or ()}
    mistrals = choice == "any" and "any" not in names and not strict_tgi
    if isinstance(choice, AnyTool) or choice == "required" or mistrals:
        return "required", ""
    return "named", choice


def _among(tools: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The tools with these names. Raises ToolError where one is not there."""
    by_name = {tool["function"]["name"]: tool for tool in tools}
    if lacking := next((name for name in names if name not in by_name), None):
        raise ToolError(f"Tool with name {lacking} not found")
    return [tool for name, tool in by_name.items() if name in names]


def shown_tool(tool: Tool) -> Mapping[str, Any]:
    """The tool as templates know it. TGI's name for a function's `parameters` is `arguments`."""
    function = tool["function"]
    if "arguments" not in function or "parameters" in function:
        return tool
    renamed = {
        "parameters" if name == "arguments" else name: value for name, value in function.items()
    }
    return {**tool, "function": renamed}


def format_for(service: Service) -> Format:
    """How the model writes calls."""
    if service.limits.tool_call_parser is not None:
        return format_named(service.limits.tool_call_parser)
    return JSON if service.chat_template is None else service.chat_template.traits.format


class AnswerReader:
    """How one chat's answers are read, and what they are held to.

    `form` is the form that the answer is to have, where it is no call; a call that is forced has
    none. `constraint` is what the whole text follows, where that is not the form alone: calls that
    are forced, calls or the form, or thoughts before either. `shown` are the special tokens that
    the parser has to see.

    Raises:
        ValidationError: the form is none.
        ToolError: the calls cannot be forced.
    """

    def __init__(
        self, service: Service, offer: Offer | None, prompt: str, form: Form | None
    ) -> None:
        tokenizer = self._tokenizer = service.tokenizer
        template = service.chat_template
        self._offer = offer
        self._format = format_for(service) if offer else None
        self._thinking = None if template is None else template.traits.thoughts
        self._opened = self._thinking is not None and opens_thoughts(prompt, self._thinking)
        self.short_ids = self._format is not None and self._format.short_ids
        self._held: Held | None = None
        if offer and (offer.forced is not None or form is not None):
            self._held = "calls" if form is None else "either"
        answer: Grammar | None = None
        if form is not None and (self._opened or self._held):
            answer = term_of(form.grammar, form.field, strict_tgi=False)
        if offer and self._format and self._held:
            answer = _calls_of(offer, self._format, answer, self._is_special)
        if answer is not None and self._opened and self._thinking:
            answer = after_thoughts(answer, self._thinking, self._is_special)
        elif answer is not None or form is not None:
            self._thinking = None  # the answer begins at once
        self.constraint = answer
        marks = {*(self._format.marks if self._format else ()), *(self._thinking or ())}
        self.shown = {id: mark for mark in marks if (id := tokenizer.special_id(mark)) is not None}

    def _is_special(self, name: str) -> bool:
        return self._tokenizer.special_id(name) is not None

    def parser(self) -> Parser | None:
        """One for each choice; None where all of an answer is prose."""
        if self._format is None and self._thinking is None:
            return None
        offer = self._offer
        return Parser(
            self._format,
            offer.schemas if offer else {},
            thinking=self._thinking,
            opened=self._opened,
            parallel=offer is None or offer.parallel,
            held=self._held,
        )


def _calls_of(
    offer: Offer, format: Format, answer: Grammar | None, is_special: IsSpecial
) -> Grammar:
    """Calls that the answer must be, or may be in place of a text that follows `answer`.

    Arguments follow their schema where the call is forced or its function is `strict`.
    """
    forced = offer.forced is not None
    functions = [
        tool["function"] for tool in (offer.tools if offer.forced is None else offer.forced)
    ]
    schemas = [
        (
            function["name"],
            arguments_schema(function.get("parameters"))
            if forced or function.get("strict")
            else None,
        )
        for function in functions
    ]
    most = None if offer.parallel else 1
    try:
        if answer is None:
            return forced_calls(format, schemas, is_special, most=most)
        return calls_or(format, schemas, answer, is_special, most=most)
    except NotForced as error:
        advice = 'Ask with `tool_choice` "auto"' if forced else "Leave `strict` out"
        raise ToolError(
            f"{error} cannot be forced in the format {format.name}, in which this model writes "
            f"calls. {advice}"
        ) from error
