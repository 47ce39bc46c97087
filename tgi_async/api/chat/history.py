"""Change the messages of a chat for templates that do not show tools and calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from tgi_async.text.tools.format import Format

Messages = list[dict[str, Any]]
"""Messages as templates see them; `content` is a text, a list of text parts, or null."""


def in_front(messages: Sequence[Mapping[str, Any]], text: str) -> Messages:
    """Put `text` into the system message, or before the first message of the user.

    No system message is added, as some templates refuse one.
    """
    made = [dict(message) for message in messages]
    system = next((one for one in made if one["role"] in ("system", "developer")), None)
    if system is not None:
        system["content"] = _joined(system["content"], f"\n\n{text}")
        return made
    first = next((one for one in made if one["role"] == "user"), made[0])
    first["content"] = _joined(f"{text}\n\n", first["content"])
    return made


def behind_last(messages: Sequence[Mapping[str, Any]], text: str) -> Messages:
    """Put `text` behind the last message, if that has any."""
    made = [dict(message) for message in messages]
    if made and made[-1]["content"] is not None:
        made[-1]["content"] = _joined(made[-1]["content"], text)
    return made


def without_calls(messages: Sequence[Mapping[str, Any]], format: Format) -> Messages:
    """Write calls as the model writes them, and their results as user messages."""
    made: Messages = []
    answering = False
    for message in messages:
        one = dict(message)
        if calls := one["tool_calls"]:
            written = format.text([_call(call) for call in calls])
            one["content"] = _joined(one["content"], f"\n{written}" if one["content"] else written)
            one["tool_calls"] = None
        if one["role"] == "tool":
            result = _joined("<tool_response>\n", one["content"])
            result = _joined(result, "\n</tool_response>")
            if answering:
                made[-1]["content"] = _joined(_joined(made[-1]["content"], "\n"), result)
                continue
            one |= {"role": "user", "content": result, "tool_call_id": None, "name": None}
            answering = True
        else:
            answering = False
        made.append(one)
    return made


def _call(call: Mapping[str, Any]) -> tuple[str, Any]:
    """Return name and arguments, which are a JSON text in OpenAI's API."""
    function = call["function"]
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        # A model may have written invalid JSON: that stays a text.
        with suppress(ValueError, RecursionError):
            arguments = json.loads(arguments)
    return function["name"], {} if arguments is None else arguments


def _joined(one: Any, other: Any) -> Any:
    """Return two contents as one: a text, or a list of parts if either is one."""
    if one is None or other is None:
        return other if one is None else one
    if isinstance(one, str) and isinstance(other, str):
        return one + other
    return [
        part
        for content in (one, other)
        for part in ([{"type": "text", "text": content}] if isinstance(content, str) else content)
    ]
