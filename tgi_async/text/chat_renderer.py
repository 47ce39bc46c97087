"""Render messages to a prompt, as transformers' `apply_chat_template` does.

Nothing here is bounded in time: `tgi_async.text.chat_process` runs it where it can be ended.
"""

from __future__ import annotations

import secrets
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2 import meta

from tgi_async.errors import TemplateError, ValidationError
from tgi_async.text.chat_environment import RaisedByTemplate, environment
from tgi_async.text.chat_forms import Forms, Message, all_shaped
from tgi_async.text.tools.templates import THINKING_VARIABLES

RESERVED_VARIABLES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "continue_final_message"}
)
"""Variables that are fields of the request, or made from them."""

_THOUGHT = "Both are small"
_ANSWER = "The answer is five"
_CALLED = "look_it_up"
_CALL = {"id": "call00000", "type": "function", "function": {"name": _CALLED, "arguments": {}}}


class Renderer:
    """The templates of one model, compiled.

    `templates` are sources by name, of which `default`, `tool_use` (when there are tools) and `rag`
    (when there are documents) are used; `special_tokens` are variables of the template by names
    such as `bos_token`. What is wrong with a template is an error of the requests that need it.
    """

    def __init__(self, templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> None:
        self._special_tokens = dict(special_tokens)
        self._templates = {
            name: _Template(source, special_tokens) for name, source in templates.items()
        }

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> str:
        """Return the prompt.

        `continue_final_message` ends it inside the last message, exactly as transformers does. If
        it and `add_generation_prompt` are None, an assistant's text at the end is continued too,
        and trailing white space cut off, as in TGI.

        Raises:
            TemplateError: the template refuses these messages, or cannot show them.
            ValidationError: `variables` has a name that is not allowed.
        """
        template = self._choose(tools, documents)
        template.check(variables or {})
        shaped_messages = all_shaped(messages, template.forms)
        given = {**self._special_tokens, **(variables or {}), "tools": tools}
        given["documents"] = documents
        if continue_final_message:
            return _continue(template, shaped_messages, given)
        undecided = continue_final_message is None and add_generation_prompt is None
        if undecided and _ends_in_answer(messages):
            return _continue(template, shaped_messages, given).rstrip()
        given["add_generation_prompt"] = add_generation_prompt is not False
        return template.render(shaped_messages, given)

    def endings(self) -> list[tuple[str, str]]:
        """Return what each template writes behind an answer at the end of a chat.

        The second text is what it writes within a turn: between thoughts and answer, and between
        answer and calls. A template that does not show the answer is left out.
        """
        found: list[tuple[str, str]] = []
        for template in self._templates.values():
            plain = self._with_answer(template)
            _, shown, ending = plain.rpartition(_ANSWER)
            thought = self._with_answer(template, reasoning=_THOUGHT, reasoning_content=_THOUGHT)
            called = self._with_answer(template, tool_calls=[_CALL])
            within = _between(thought, _THOUGHT, _ANSWER) + _between(called, _ANSWER, _CALLED)
            found += [(ending, within)] if shown else []
        return found

    def _with_answer(self, template: _Template, **fields: Any) -> str:
        """Render a chat whose last turn has these fields too; empty if the template refuses it."""
        chat: list[Message] = [
            {"role": "user", "content": "What is two and three?"},
            {"role": "assistant", "content": _ANSWER, **fields},
        ]
        given = {**self._special_tokens, "tools": None, "documents": None}
        try:
            shaped_chat = all_shaped(chat, template.forms)
            return template.render(shaped_chat, {**given, "add_generation_prompt": False})
        except TemplateError:
            return ""

    def _choose(
        self,
        tools: Sequence[Mapping[str, Any]] | None,
        documents: Sequence[Mapping[str, Any]] | None,
    ) -> _Template:
        name = "default"
        if tools is not None and "tool_use" in self._templates:
            name = "tool_use"
        elif documents is not None and "rag" in self._templates:
            name = "rag"
        template = self._templates.get(name)
        if template is None:
            raise TemplateError(
                f"template not found: none of the model's is named default. Its templates: "
                f"{', '.join(sorted(self._templates))}"
            )
        return template


class _Template:
    """One compiled template, and the forms that it takes."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._broken: str | None = None
        self._variables: set[str] = set()
        self._reserved = RESERVED_VARIABLES | special_tokens.keys()
        self.forms = Forms()
        made = environment()
        try:
            self._compiled = made.from_string(source)
            self._variables = meta.find_undeclared_variables(made.parse(source))
        except Exception as error:  # any exception of an expression that is folded at compile time
            self._broken = _message_of(error)
            return
        self.forms = Forms.probed(
            source,
            lambda messages, tools: self.render(
                messages,
                {
                    **special_tokens,
                    "tools": tools,
                    "documents": None,
                    "add_generation_prompt": False,
                },
            ),
        )

    def check(self, variables: Mapping[str, Any]) -> None:
        """Refuse variables that would replace others, and those that the template does not read."""
        allowed = (self._variables | THINKING_VARIABLES) - self._reserved
        for name in variables:
            if name in self._reserved:
                reason = "made by the server from the request's own fields"
            elif name not in allowed:
                reason = f"not read by this model's template. Allowed: {', '.join(sorted(allowed))}"
            else:
                continue
            raise ValidationError(f"`chat_template_kwargs.{name[:64]}` is {reason}")

    def render(self, messages: Sequence[Message], variables: Mapping[str, Any]) -> str:
        if self._broken is not None:
            raise TemplateError(self._broken)
        try:
            return self._compiled.render({**variables, "messages": messages})
        except Exception as error:  # any exception of a template's expressions
            raise TemplateError(_message_of(error)) from error


def _ends_in_answer(messages: Sequence[Message]) -> bool:
    return bool(messages and messages[-1]["role"] == "assistant" and messages[-1].get("content"))


def _continue(
    template: _Template, messages: Sequence[Message], variables: Mapping[str, Any]
) -> str:
    """Return the prompt up to the end of the last message's text.

    The end is found by a mark behind the text: random, so that no text can hold it, and ending in a
    space, which is gone if the template trims what it shows.
    """
    mark = f"END_OF_MESSAGE_{secrets.token_hex(8)}"
    message, text = _marked(messages[-1] if messages else {}, f"{mark} ")
    variables = {**variables, "add_generation_prompt": False}
    rendered = template.render([*messages[:-1], message], variables)
    end = rendered.rfind(mark)
    if end < 0 or text.strip() not in rendered:
        raise TemplateError(
            "the template does not show the whole last message, so that it cannot be continued. "
            "End with a user message"
        )
    prompt = rendered[:end]
    return prompt if rendered.startswith(" ", end + len(mark)) else prompt.rstrip()


def _between(text: str, first: str, second: str) -> str:
    """Return what is between two parts of a text; empty if it does not have both in this order."""
    _, _, rest = text.partition(first)
    between, shown, _ = rest.partition(second)
    return between if shown else ""


def _marked(message: Message, mark: str) -> tuple[Message, str]:
    """Return the message with `mark` behind its text, and the text without."""
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": content + mark}, content
    parts = list(content or ())
    for place in reversed(range(len(parts))):
        text = parts[place].get("text")
        if isinstance(text, str):
            parts[place] = {**parts[place], "text": text + mark}
            return {**message, "content": parts}, text
    raise TemplateError("the last message has no text that could be continued")


def _message_of(error: Exception) -> str:
    """Return the error in TGI's form: the message and the line of the template."""
    if isinstance(error, jinja2.TemplateSyntaxError):
        return f"syntax error: {error.message} (in <string>:{error.lineno})"
    text = str(error) or type(error).__name__
    if isinstance(error, RaisedByTemplate):
        text = f"syntax error: {text}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == "<template>"
    ]
    return f"{text} (in <string>:{lines[-1]})" if lines else text
