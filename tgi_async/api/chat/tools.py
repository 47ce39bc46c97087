"""Tools of a chat, and how to parse its answers."""

from __future__ import annotations

import secrets
import string
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from tgi_async.api.chat.schema import ChatRequest
from tgi_async.api.chat.tool_schema import AllowedTools, AnyTool, NamedTool, Tool
from tgi_async.api.dialect import Dialect
from tgi_async.api.grammar.constraint import term_of
from tgi_async.api.openai.form import Form
from tgi_async.api.service import Service
from tgi_async.errors import ToolError
from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.text.tools import harmony
from tgi_async.text.tools.constraint import (
    after_thoughts,
    arguments_schema,
    calls_or,
    forced_calls,
    held_calls,
    splitter,
)
from tgi_async.text.tools.format import Format, Turn
from tgi_async.text.tools.formats import JSON, format_named
from tgi_async.text.tools.notation import NotForced, Terms
from tgi_async.text.tools.parser import AnswerParser, Held, answer_parser
from tgi_async.text.tools.templates import opens_thoughts

_LETTERS = string.ascii_letters + string.digits

MOST_TOOLS = 128
"""OpenAI's limit."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Tools that the model may call, in the form that templates know.

    `forced`: tools of which it must call one; None: it may also answer with text. `parallel`:
    whether there may be several calls.
    """

    tools: Sequence[Mapping[str, Any]]
    forced: Sequence[Mapping[str, Any]] | None
    parallel: bool

    @property
    def schemas(self) -> dict[str, Any]:
        """The schemas of the parameters, by the functions' names."""
        functions = [tool["function"] for tool in self.tools]
        return {function["name"]: function.get("parameters") for function in functions}


def offer_of(body: ChatRequest, dialect: Dialect) -> Offer | None:
    """Return the tools on offer; None if there are none, or none may be called.

    Raises:
        ToolError: the tools, the choice among them and the form of the answer do not fit together.
    """
    like_tgi = dialect.calls_tools_like_tgi
    if like_tgi and body.response_format is not None and body.tools is not None:
        raise ToolError("Grammar and tools are mutually exclusive")
    word, name = _choice_of(body, dialect)
    if not body.tools:
        if word in ("named", "required") and not like_tgi:
            raise ToolError("`tool_choice` wants a call, and there are no `tools` to call")
        return None
    if word == "none":
        return None
    if not like_tgi and len(body.tools) > MOST_TOOLS:  # a rule that TGI does not have
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
    body: ChatRequest, dialect: Dialect
) -> tuple[Literal["auto", "none", "required", "named"], str]:
    """Return the kind of choice among tools, and a name if it is by name."""
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
    mistrals = choice == "any" and "any" not in names and not dialect.calls_tools_like_tgi
    if isinstance(choice, AnyTool) or choice == "required" or mistrals:
        return "required", ""
    return "named", choice


def _among(tools: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return the tools with these names. Raise ToolError where one is missing."""
    by_name = {tool["function"]["name"]: tool for tool in tools}
    if lacking := next((name for name in names if name not in by_name), None):
        raise ToolError(f"Tool with name {lacking} not found")
    return [tool for name, tool in by_name.items() if name in names]


def shown_tool(tool: Tool) -> Mapping[str, Any]:
    """Return the tool as templates know it. TGI calls a function's `parameters` `arguments`."""
    function = tool["function"]
    if "arguments" not in function or "parameters" in function:
        return tool
    renamed = {
        "parameters" if name == "arguments" else name: value for name, value in function.items()
    }
    return {**tool, "function": renamed}


def format_for(service: Service) -> Format:
    """Return the format in which the model writes calls."""
    if service.limits.tool_call_parser is not None:
        return format_named(service.limits.tool_call_parser)
    return JSON if service.chat_template is None else service.chat_template.traits.format


def _turn_for(service: Service, format: Format) -> Turn:
    """Return the format of the model's turns besides calls."""
    if format.turn is not None:
        return format.turn
    return Turn() if service.chat_template is None else service.chat_template.traits.turn


class AnswerReader:
    """How to parse the answers of one chat, and the grammar that constrains them.

    `form` is the form that the answer is to have, where it is no call; a call that is forced has
    none. `constraint` is what the whole text follows, where that is not the form alone: calls that
    are forced, calls or the form, or what the model writes before either. `shown` are the special
    tokens that the parser has to see. `n_called` is the number of calls in earlier messages.

    Raises:
        ValidationError: the form is none.
        ToolError: the calls cannot be forced.
    """

    def __init__(
        self,
        service: Service,
        offer: Offer | None,
        prompt: str,
        form: Form | None,
        *,
        n_called: int = 0,
    ) -> None:
        self._offer = offer
        self._n_called = n_called
        format = format_for(service)
        self._format = format if offer or format.channels else None
        self._turn = _turn_for(service, format)
        thoughts = self._turn.thoughts
        self._opened = thoughts is not None and opens_thoughts(prompt, thoughts)
        self._held: Held | None = "text" if form is not None else None
        if offer and (offer.forced is not None or form is not None):
            self._held = "calls" if form is None else "either"
        literals = (*self._turn.dropped, *(thoughts or ()), self._turn.answer)
        self.shown = _special_in(
            service.tokenizer, (*literals, *(self._format.literals if self._format else ()))
        )
        self.constraint = self._constraint(prompt, form)
        if self._held and not self._opened:
            self._turn = self._turn._replace(thoughts=None)  # the answer begins at once

    def call_id(self, index: int, name: str) -> str:
        """Return an id for the call with this index in the answer."""
        ids = "any" if self._format is None else self._format.ids
        if ids == "numbered":
            return f"functions.{name}:{self._n_called + index}"
        letters = "".join(secrets.choice(_LETTERS) for _ in range(9 if ids == "short" else 24))
        return letters if ids == "short" else f"call_{letters}"

    def _constraint(self, prompt: str, form: Form | None) -> Grammar | None:
        """Return the grammar of the whole text; None: there is none, or only the response
        format's."""
        terms_of = splitter(self.shown.values())
        if self._held is None:
            return self._held_calls(terms_of)
        answer: Grammar | None = None
        before = self._turn.answer
        if form is not None:
            answer = term_of(form.grammar, form.field)
            if before and not prompt.endswith(before):
                answer = terms.Sequence([*terms_of(before), answer])
            elif not self._offer and not self._opened:
                return None
        if self._offer and self._format:
            answer = _calls_of(self._offer, self._format, answer, terms_of)
        assert answer is not None
        if self._format and self._format.channels:
            return harmony.after_thoughts(answer, terms_of)
        if self._opened and self._turn.thoughts:
            return after_thoughts(answer, self._turn.thoughts, terms_of)
        return answer

    def _held_calls(self, terms_of: Terms) -> Grammar | None:
        """Return the grammar that makes optional calls follow the schemas of `strict` functions."""
        offer, format, turn = self._offer, self._format, self._turn
        if (
            not offer
            or not format
            or not any(tool["function"].get("strict") for tool in offer.tools)
        ):
            return None
        functions, most = _functions_of(offer), None if offer.parallel else 1
        with _refusing(format, "Leave `strict` out"):
            if format.channels:
                calls = forced_calls(format, functions, terms_of, most=most)
                return harmony.held_calls(calls, terms_of)
            if self._opened and turn.thoughts:
                inner = turn._replace(thoughts=None)
                calls = held_calls(format, functions, terms_of, turn=inner, most=most)
                return after_thoughts(calls, turn.thoughts, terms_of)
            return held_calls(format, functions, terms_of, turn=turn, most=most)

    def parser(self) -> AnswerParser | None:
        """Return a new parser for a choice; None where all of an answer is prose."""
        turn = self._turn
        if self._format is None and turn.thoughts is None and not turn.dropped:
            return None
        offer = self._offer
        return answer_parser(
            self._format,
            offer.schemas if offer else {},
            turn=turn,
            opened=self._opened,
            parallel=offer is None or offer.parallel,
            held=self._held,
        )


@lru_cache(maxsize=64)
def _special_in(tokenizer: Tokenizer, literals: tuple[str, ...]) -> dict[int, str]:
    """Return the special tokens that occur in any of these texts, by their ids."""
    named = {id: tokenizer.token_text(id) for id in tokenizer.special_ids}
    return {
        id: name for id, name in named.items() if name and any(name in text for text in literals)
    }


def _calls_of(offer: Offer, format: Format, answer: Grammar | None, terms_of: Terms) -> Grammar:
    """Return the grammar of calls, or of calls and of texts that follow `answer`."""
    functions, most = _functions_of(offer), None if offer.parallel else 1
    forced = offer.forced is not None
    with _refusing(format, 'Ask with `tool_choice` "auto"' if forced else "Leave `strict` out"):
        if answer is None:
            return forced_calls(format, functions, terms_of, most=most)
        return calls_or(format, functions, answer, terms_of, most=most)


def _functions_of(offer: Offer) -> list[tuple[str, Any]]:
    """Return the functions that may be called, with the schemas of their arguments.

    None: any arguments, where the call is not forced and the function not `strict`.
    """
    forced = offer.forced is not None
    functions = [tool["function"] for tool in offer.forced or offer.tools]
    return [
        (
            function["name"],
            arguments_schema(function.get("parameters"))
            if forced or function.get("strict")
            else None,
        )
        for function in functions
    ]


@contextmanager
def _refusing(format: Format, advice: str) -> Iterator[None]:
    """Raise ToolError for a schema that cannot be enforced in the format."""
    try:
        yield
    except NotForced as error:
        raise ToolError(
            f"{error} cannot be forced in the format {format.name}, in which this model writes "
            f"calls. {advice}"
        ) from error
