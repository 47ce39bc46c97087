"""Forms of messages in which chat templates differ, found out by trying them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from tgi_async.errors import TemplateError

Message = Mapping[str, Any]
"""`role`, and of `content`, `tool_calls`, `tool_call_id`, `name`, `reasoning_content` what it has;
`content` is a text or a list of parts: `{"type": "text", "text": ...}`, and images as
`{"type": "image", "text": ...}` with what stands for one in a template that takes texts only."""

Render = Callable[[Sequence[Message], "list[dict[str, Any]] | None"], str]
"""Renders messages and tools to text. Raises TemplateError."""

_TEXT = "needle in a haystack"
_EMPTY = {"type": "text", "text": ""}
_VALUE = "needle_value"
_ARGUMENTS = {"needle_name": _VALUE}

Silence = Literal["empty", "absent", "null"]
"""The content of a message that has calls and no text."""
_TOOL = {
    "type": "function",
    "function": {
        "name": "find",
        "description": "Find it.",
        "parameters": {"type": "object", "properties": {"needle_name": {"type": "string"}}},
    },
}


@dataclass(frozen=True, slots=True)
class Forms:
    """The forms of messages that one template takes.

    `content`: texts only, texts and lists of parts alike, or lists of parts only.
    `images`: whether parts that are images are shown.
    `arguments`: those of a tool call as an object, or as a text in JSON.
    `objects_only`: whether it cannot show arguments that are no object.
    `silences`: beside which of them it shows calls.
    `single_calls`: whether it refuses messages of several calls, as Llama 3's templates do.
    `developer`: whether it knows that role.
    `system`: whether it takes a system message, which templates of Gemma 2 and Mistral 7B refuse.
    `user_turns`: whether it takes two messages of a user in a row, which the same ones refuse.
    """

    content: Literal["text", "either", "parts"] = "text"
    images: bool = False
    arguments: Literal["object", "text"] = "object"
    objects_only: bool = False
    silences: tuple[Silence, ...] = ()
    single_calls: bool = False
    developer: bool = False
    system: bool = True
    user_turns: bool = True

    @classmethod
    def probed(cls, source: str, render: Render) -> Forms:
        """Return the forms of the template with this source."""
        known = cls(
            content=_content_form(render),
            images=_shows_images(render),
            developer="developer" in source,
        )
        return _with_calls(_with_turns(known, render), render)


def all_shaped(messages: Sequence[Message], forms: Forms) -> list[dict[str, Any]]:
    """Return the messages in these forms."""
    if not forms.system:
        messages = _without_system(messages)
    if not forms.user_turns:
        messages = _without_repeated_users(messages)
    if forms.single_calls:
        messages = _one_by_one(messages)
    return [shaped(message, forms) for message in messages]


def shaped(message: Message, forms: Forms) -> dict[str, Any]:
    """Return one message in these forms.

    As in transformers, a field that is null is not there, and what the model thought is under all
    of the names that templates read.
    """
    made = {name: value for name, value in message.items() if value is not None}
    if made.get("role") == "developer" and not forms.developer:
        made["role"] = "system"
    if "content" in made:
        made["content"] = _shaped_content(made["content"], forms)
    if made.get("tool_calls"):
        made["tool_calls"] = [_shaped_call(call, forms) for call in made["tool_calls"]]
        if not message.get("content") and forms.silences:
            given: Silence = "empty" if "content" in made else "absent"
            if given not in forms.silences:
                made = _silent(made, forms.silences[0], forms)
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in made:
            return {"thinking": made[name], **made, "reasoning_content": made[name]}
    return made


def _without_system(messages: Sequence[Message]) -> Sequence[Message]:
    """Put the system message at the start before the first text of the user."""
    n = 0
    while n < len(messages) and messages[n]["role"] in ("system", "developer"):
        n += 1
    if n in (0, len(messages)) or messages[n]["role"] != "user":
        return messages
    texts = [_text_of(message) for message in messages[:n]]
    return [_behind([text for text in texts if text], messages[n]), *messages[n + 1 :]]


def _without_repeated_users(messages: Sequence[Message]) -> list[Message]:
    """Merge consecutive messages of the user into one."""
    made: list[Message] = []
    for message in messages:
        if made and message["role"] == made[-1]["role"] == "user":
            made[-1] = _joined(made[-1], message)
        else:
            made.append(message)
    return made


def _joined(first: Message, second: Message) -> Message:
    """Return one message with the contents of both, a blank line between them."""
    if isinstance(first.get("content"), str):
        return _behind([_text_of(first)], second)
    before = first.get("content") or []
    return {**second, "content": [*before, *_parts_of(_behind([""], second))]}


def _behind(texts: Sequence[str], message: Message) -> Message:
    """Return the message with these texts before its own, a blank line between each and the
    next."""
    before = "".join(f"{text}\n\n" for text in texts)
    content = message.get("content")
    if isinstance(content, str):
        return {**message, "content": before + content}
    return {**message, "content": [{"type": "text", "text": before}, *(content or ())]}


def _text_of(message: Message) -> str:
    return "".join(part.get("text") or "" for part in _parts_of(message))


def _parts_of(message: Message) -> Sequence[Mapping[str, Any]]:
    content = message.get("content")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content or ()


def _one_by_one(messages: Sequence[Message]) -> list[Message]:
    """Split messages with several calls: a message for each call, and the call's results behind
    it."""
    made: list[Message] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        place += 1
        calls = message.get("tool_calls") or ()
        if len(calls) < 2:
            made.append(message)
            continue
        results: list[Message] = []
        while place < len(messages) and messages[place]["role"] == "tool":
            results.append(messages[place])
            place += 1
        for call in calls:
            made.append({**message, "tool_calls": [call]})
            message = {"role": message["role"]}
            ids = (call.get("id"), None) if isinstance(call, dict) else (None,)
            found = next((one for one in results if one.get("tool_call_id") in ids), None)
            if found is not None:
                results.remove(found)
                made.append(found)
        made += results
    return made


def _shaped_content(content: Any, forms: Forms) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if forms.content == "parts" else content
    if forms.images and any(part["type"] == "image" for part in content):
        return [part if part["type"] == "text" else {"type": "image"} for part in content]
    if forms.content == "text":
        return "".join(part["text"] for part in content)
    return [{"type": "text", "text": part["text"]} for part in content]


def _silent(message: dict[str, Any], silence: Silence, forms: Forms) -> dict[str, Any]:
    """Return the message with this content."""
    made = {name: value for name, value in message.items() if name != "content"}
    if silence != "absent":
        made["content"] = _shaped_content("", forms) if silence == "empty" else None
    return made


def _shaped_call(call: Any, forms: Forms) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict):
        return call
    arguments = function.get("arguments")
    if arguments is None:
        arguments = {}
    if forms.arguments == "object":
        arguments = _parsed(arguments)
        if forms.objects_only and not isinstance(arguments, dict):
            # Such as a call that was cut off: agents send it back beside the error that it caused.
            arguments = {"arguments": arguments}
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: Any) -> Any:
    """Parse OpenAI's arguments, a text in JSON; a model may have written an invalid one.

    What is no object stays a text. `null` is what some models write where a function takes nothing.
    """
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return {} if value is None else value if isinstance(value, dict) else arguments


def _content_form(render: Render) -> Literal["text", "either", "parts"]:
    text = _attempt(render, [{"role": "user", "content": _TEXT}], None)
    parts = [{"type": "text", "text": _TEXT}]
    listed = _attempt(render, [{"role": "user", "content": parts}], None)
    if _TEXT not in listed:
        return "text"
    if _TEXT not in text:
        return "parts"
    # A template that does not handle lists shows them as Python does.
    return "either" if text == listed else "text"


def _shows_images(render: Render) -> bool:
    """Return whether an image among the parts is shown as something, unlike no part or an empty
    text."""

    def shown(*before: dict[str, str]) -> str:
        content = [*before, {"type": "text", "text": _TEXT}]
        return _attempt(render, [{"role": "user", "content": content}], None)

    image = shown({"type": "image"})
    # A template that does not handle lists shows them as Python or JSON does.
    listed = "'type'" in image or '"type"' in image
    return _TEXT in image and image not in (shown(), shown(_EMPTY)) and not listed


def _with_turns(forms: Forms, render: Render) -> Forms:
    """Return the forms with those of system messages and of consecutive user messages."""

    def takes(*roles: str) -> bool:
        content = _shaped_content(_TEXT, forms)
        return bool(_attempt(render, [{"role": role, "content": content} for role in roles], None))

    if not takes("user"):
        return forms
    return replace(forms, system=takes("system", "user"), user_turns=takes("user", "user"))


def _with_calls(forms: Forms, render: Render) -> Forms:
    """Return the forms with those of tool calls.

    Older templates of DeepSeek's show calls only where the content is null, others show that null
    as a text.
    """

    def shown(arguments: Any, silence: Silence) -> str:
        made = _attempt(render, _call(arguments, silence, forms), [_TOOL])
        return "" if "None" in made else made

    def shows_object(silence: Silence) -> bool:
        made = shown(_ARGUMENTS, silence)
        return _VALUE in made and f"{_ARGUMENTS}" not in made

    def shows_text(silence: Silence) -> bool:
        return json.dumps(_ARGUMENTS) in shown(json.dumps(_ARGUMENTS), silence)

    all_silences = get_args(Silence)
    if silences := tuple(filter(shows_object, all_silences)):
        objects_only = _TEXT not in shown(_TEXT, silences[0])
        forms = replace(forms, silences=silences, objects_only=objects_only)
    elif silences := tuple(filter(shows_text, all_silences)):
        forms = replace(forms, silences=silences, arguments="text")
    else:
        return forms
    chat, called, result = _call(_ARGUMENTS, silences[0], forms)
    called = {**called, "tool_calls": called["tool_calls"] * 2}
    several = [chat, called, result, result]
    alone = all_shaped(several, replace(forms, single_calls=True))
    single_calls = not _attempt(render, [shaped(one, forms) for one in several], [_TOOL]) and bool(
        _attempt(render, alone, [_TOOL])
    )
    return replace(forms, single_calls=single_calls)


def _call(arguments: Any, silence: Silence, forms: Forms) -> list[dict[str, Any]]:
    call_id = "call00000"  # Mistral's templates take nine letters and digits only
    function = {"name": "find", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "user", "content": _shaped_content("Find it.", forms)},
        _silent({"role": "assistant", "tool_calls": [call]}, silence, forms),
        {
            "role": "tool",
            "content": _shaped_content("found", forms),
            "name": "find",
            "tool_call_id": call_id,
        },
    ]


def _attempt(
    render: Render, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    try:
        return render(messages, tools)
    except TemplateError:
        return ""
