"""What a template takes where templates differ, found out by trying it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tgi_async.errors import TemplateError

Message = Mapping[str, Any]
"""`role`, and of `content`, `tool_calls`, `tool_call_id`, `name`, `reasoning_content` what it has;
`content` is a text or a list of parts such as `{"type": "text", "text": ...}`."""

Render = Callable[[Sequence[Message], "list[dict[str, Any]] | None"], str]
"""Messages and tools to text. Raises TemplateError."""

_TEXT = "needle in a haystack"
_VALUE = "needle_value"
_ARGUMENTS = {"needle_name": _VALUE}
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
    """What one template takes.

    `content`: texts only, texts and lists of parts alike, or lists of parts only.
    `arguments`: those of a tool call as an object, or as a text in JSON.
    `developer`: whether it knows that role.
    """

    content: Literal["text", "either", "parts"] = "text"
    arguments: Literal["object", "text"] = "object"
    developer: bool = False

    @classmethod
    def probed(cls, source: str, render: Render) -> Forms:
        """The forms of the template with this source."""
        return cls(
            content=_content_form(render),
            arguments=_arguments_form(render),
            developer="developer" in source,
        )


def shaped(message: Message, forms: Forms) -> dict[str, Any]:
    """The message in these forms.

    As in transformers, a field that is null is not there, and what the model thought is under all
    of the names that templates read.
    """
    made = {name: value for name, value in message.items() if value is not None}
    if made.get("role") == "developer" and not forms.developer:
        made["role"] = "system"
    if "content" in made:
        made["content"] = _shaped_content(made["content"], forms)
    if "tool_calls" in made:
        made["tool_calls"] = [_shaped_call(call, forms) for call in made["tool_calls"]]
    for name in ("reasoning_content", "thinking", "reasoning"):
        if name in made:
            return {"thinking": made[name], **made, "reasoning_content": made[name]}
    return made


def _shaped_content(content: Any, forms: Forms) -> Any:
    if isinstance(content, str):
        return [{"type": "text", "text": content}] if forms.content == "parts" else content
    if forms.content == "text":
        return "".join(part["text"] for part in content)
    return content


def _shaped_call(call: Any, forms: Forms) -> Any:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or "arguments" not in function:
        return call
    arguments = function["arguments"]
    if forms.arguments == "object":
        arguments = _parsed(arguments)
    elif not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


def _parsed(arguments: Any) -> Any:
    """OpenAI's arguments are a text in JSON; a model may have written one that is not."""
    if not isinstance(arguments, str):
        return arguments
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _content_form(render: Render) -> Literal["text", "either", "parts"]:
    text = _attempt(render, [{"role": "user", "content": _TEXT}], None)
    parts = [{"type": "text", "text": _TEXT}]
    listed = _attempt(render, [{"role": "user", "content": parts}], None)
    if _TEXT not in listed:
        return "text"
    if _TEXT not in text:
        return "parts"
    # One that does not know lists shows them as Python does.
    return "either" if text == listed else "text"


def _arguments_form(render: Render) -> Literal["object", "text"]:
    as_object = _attempt(render, _call(_ARGUMENTS), [_TOOL])
    if _VALUE in as_object and f"{_ARGUMENTS}" not in as_object:
        return "object"
    as_text = _attempt(render, _call(json.dumps(_ARGUMENTS)), [_TOOL])
    return "text" if json.dumps(_ARGUMENTS) in as_text else "object"


def _call(arguments: Any) -> list[dict[str, Any]]:
    call_id = "call00000"  # Mistral's templates take nine letters and digits only
    function = {"name": "find", "arguments": arguments}
    call = {"id": call_id, "type": "function", "function": function}
    return [
        {"role": "user", "content": "Find it."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "found", "name": "find", "tool_call_id": call_id},
    ]


def _attempt(
    render: Render, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None
) -> str:
    try:
        return render(messages, tools)
    except TemplateError:
        return ""
