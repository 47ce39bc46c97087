"""TGI's form of tools: in every answer a grammar decides which one is called.

An answer is `{"function": {"_name": "...", <arguments>}}`; `no_tool` is the name of none.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tgi_async.grammar import grammar as terms
from tgi_async.grammar.grammar import Grammar
from tgi_async.text.tools.events import ArgumentsPiece, CallStart, Event, merged
from tgi_async.text.tools.reader import Reader, Reading

TOOL_PROMPT = (
    "\nGiven the functions available, please respond with a JSON for a function call with its "
    "proper arguments that best answers the given prompt. Respond in the format {name: function "
    "name, parameters: dictionary of argument name and its value}.Do not use variables.\n"
)

NO_TOOL_NAME = "no_tool"
NO_TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": NO_TOOL_NAME,
        "description": "Open ended response with no specific tool selected",
        "parameters": {
            "type": "object",
            "properties": {
                "content": {"type": "string", "description": "The response content"},
            },
            "required": ["content"],
        },
    },
}


def tool_text(tools: Sequence[Mapping[str, Any]], prompt: str | None, *, shown: bool) -> str:
    """Return the instruction after the last message, with the tools where the template does not
    show them."""
    prompt = TOOL_PROMPT if prompt is None else prompt
    if shown:
        return f"\n---\n{prompt}"
    return f"\n---\n{json.dumps(list(tools), ensure_ascii=False)}\n{prompt}"


def call_of_one(functions: Sequence[Mapping[str, Any]]) -> Grammar:
    """Return a grammar of a call of one of these functions."""
    return terms.Sequence(
        [
            terms.Text('{"function": '),
            terms.Choice([terms.Json(_schema(function)) for function in functions]),
            terms.Text("}"),
        ]
    )


def _schema(function: Mapping[str, Any]) -> dict[str, Any]:
    given = function.get("parameters")
    parameters = given if isinstance(given, dict) else {}
    properties, required = parameters.get("properties"), parameters.get("required")
    # What the properties may refer to.
    kept = {key: parameters[key] for key in ("$defs", "definitions") if key in parameters}
    return {
        **kept,
        "type": "object",
        "properties": {
            "_name": {"type": "string", "const": function["name"]},
            **(properties if isinstance(properties, dict) else {}),
        },
        "required": ["_name", *(required if isinstance(required, list) else [])],
        # TGI allows others if this is the text "true".
        "additionalProperties": parameters.get("additionalProperties") == "true",
    }


def call_of(text: str) -> tuple[str, str]:
    """Return the function's name and its arguments in JSON. Raises ValueError, also for a text cut
    off."""
    try:
        function = json.loads(text)["function"]
        name = function.pop("_name")
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"no call: {error!r}") from error
    if not isinstance(name, str):
        raise ValueError(f"no call: the name is {name!r}")
    return name, json.dumps(function, ensure_ascii=False, separators=(",", ":"))


class CallReader:
    """Reads such an answer in pieces. The arguments begin once the name is known."""

    def __init__(self) -> None:
        self._reader = Reader()
        self._events: list[Event] = []
        self._from: int | None = None
        """Place from which on arguments were not emitted yet."""
        self._work = self._run()
        next(self._work)

    def feed(self, text: str) -> list[Event]:
        """Add a piece of the text; return what it completes."""
        self._reader.feed(text)
        next(self._work, None)
        if self._from is not None:
            self._events.append(ArgumentsPiece(self._reader.slice(self._from)))
            self._from = self._reader.at
        events, self._events = self._events, []
        return merged(events)

    def _run(self) -> Reading[None]:
        yield
        r = self._reader
        for key in ("function", "_name"):
            yield from r.skip()
            if (yield from r.next()) != "{":
                return
            r.at += 1
            yield from r.skip()
            if (yield from r.string()) != key:
                return
            yield from r.skip()
            if (yield from r.next()) != ":":
                return
            r.at += 1
        yield from r.skip()
        name = yield from r.string()
        yield from r.skip()
        c = yield from r.next()
        if name is None or c not in (",", "}"):
            return
        r.at += 1
        self._events += [CallStart(name), ArgumentsPiece("{")]
        if c == "}":
            self._events.append(ArgumentsPiece("}"))
            return
        yield from r.skip()
        self._from = r.at
        yield from r.rest_of_object()
        self._events.append(ArgumentsPiece(r.slice(self._from)))
        self._from = None
