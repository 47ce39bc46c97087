"""Chat templates: messages to the text of a prompt, as transformers renders them.

A template comes with a model, so it is code by strangers: it runs in jinja2's immutable sandbox.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tgi_async.errors import TemplateError
from tgi_async.text.tokenizer import read_config

Message = dict[str, str]
"""`role` and `content`, and perhaps `name` and `tool_call_id`."""


class ChatTemplate:
    """A compiled template. Thread-safe.

    `special_tokens` are variables of the template, by names such as `bos_token`. A template that
    cannot be compiled is an error of the requests that need it, not of the start.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        self._variables = dict(special_tokens)
        # Marks where the last message ends when it is to be continued. Random, so that no message
        # can hold it.
        self._end_mark = f"ENDOFMESSAGE{secrets.token_hex(8)}"
        self._broken: str | None = None
        try:
            self._template = _environment().from_string(source)
        except jinja2.TemplateError as error:
            self._broken = f"syntax error: {error}"

    @classmethod
    def from_folder(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The model's template, or None if it has none."""
        source = _source(folder)
        return None if source is None else cls(source, special_tokens)

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt for an answer to `messages`.

        If the last message is the assistant's, the prompt ends inside it, so that the model goes on
        with it.

        Raises:
            TemplateError: the template refuses these messages, or cannot show them.
        """
        if self._broken is not None:
            raise TemplateError(self._broken)
        if messages and messages[-1]["role"] == "assistant" and messages[-1]["content"]:
            return self._continue(messages)
        return self._render(messages, add_generation_prompt=True)

    def _continue(self, messages: Sequence[Message]) -> str:
        last = dict(messages[-1])
        last["content"] = last["content"].rstrip() + self._end_mark
        text = self._render([*messages[:-1], last], add_generation_prompt=False)
        prompt, mark, _ = text.rpartition(self._end_mark)
        if not mark:
            raise TemplateError(
                "the template does not show the last assistant message, so that it cannot be "
                "continued. End with a user message"
            )
        return prompt

    def _render(self, messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
        try:
            return self._template.render(
                {
                    **self._variables,
                    "messages": messages,
                    "tools": None,
                    "documents": None,
                    "add_generation_prompt": add_generation_prompt,
                }
            )
        except Exception as error:  # whatever a template's expressions can raise
            raise TemplateError(str(error)) from error


class _GenerationTag(Extension):
    """`{% generation %}` marks what the model said, for training; here it means nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = _strftime_now
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as the models were trained with: jinja2's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _strftime_now(format: str) -> str:
    return datetime.now().strftime(format)


def _source(folder: Path) -> str | None:
    """A file of its own goes before the tokenizer's configuration, as in transformers."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    source = read_config(folder).get("chat_template")
    if isinstance(source, list):
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source if isinstance(source, str) else None
