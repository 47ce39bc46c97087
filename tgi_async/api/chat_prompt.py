"""From the body of a chat to the text of its prompt."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from tgi_async.api.schemas.chat import ChatRequest, ImageChunk, MessageBody
from tgi_async.api.schemas.tools import Tool
from tgi_async.api.service import Service
from tgi_async.errors import TemplateError, ValidationError


async def prompt_of(service: Service, body: ChatRequest) -> str:
    """Render the model's template, off the event loop and for a bounded time.

    Call it with a permit in hand: what waits for the template's processes is bounded by those.

    Raises:
        TemplateError: there is no template, it refuses these messages, or it takes too long.
        ValidationError: the messages or the template's variables are not allowed.
    """
    messages = [_message(place, message) for place, message in enumerate(body.messages)]
    fields = {} if service.limits.strict_tgi else _template_fields(body)
    template = service.chat_template
    if template is None:
        raise TemplateError("template not found")
    if not messages and not service.limits.strict_tgi:
        raise ValidationError("`messages` cannot be empty")
    render = partial(template.render, messages, tools=_tools(body), **fields)
    return await asyncio.get_running_loop().run_in_executor(template.threads, render)


def _template_fields(body: ChatRequest) -> dict[str, Any]:
    """Those that TGI does not know, and ignores."""
    if body.continue_final_message and body.add_generation_prompt:
        raise ValidationError(
            "`continue_final_message` and `add_generation_prompt` exclude each other: the prompt "
            "ends either inside the last message or at the beginning of a new one. Send one of them"
        )
    variables = dict(body.chat_template_kwargs or {})
    documents = variables.pop("documents", None) if body.documents is None else body.documents
    if documents is not None and not _objects(documents):
        raise ValidationError("`chat_template_kwargs.documents` must be a list of objects")
    return {
        "documents": documents,
        "variables": variables,
        "add_generation_prompt": body.add_generation_prompt,
        "continue_final_message": body.continue_final_message,
    }


def _objects(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(entry, dict) for entry in value)


def _tools(body: ChatRequest) -> list[Mapping[str, Any]] | None:
    """Tools as templates know them, or None: an empty list is what clients send for none."""
    if not body.tools or body.tool_choice == "none":
        return None
    return [_tool(tool) for tool in body.tools]


def _tool(tool: Tool) -> Mapping[str, Any]:
    """TGI's name for a function's `parameters` is `arguments`."""
    function = tool["function"]
    if "arguments" not in function or "parameters" in function:
        return tool
    renamed = {
        "parameters" if name == "arguments" else name: value for name, value in function.items()
    }
    return {**tool, "function": renamed}


def _message(place: int, message: MessageBody) -> dict[str, Any]:
    """The message as a template sees it, with null for what it does not have."""
    if message.content is None and not message.tool_calls:
        raise ValidationError(
            f"`messages[{place}].content` must be a text or a list of text parts. Given: null"
        )
    return {
        "role": message.role,
        "content": _content(place, message),
        "name": message.name,
        "tool_calls": message.tool_calls,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": message.reasoning_content,
    }


def _content(place: int, message: MessageBody) -> str | list[dict[str, str]] | None:
    if not isinstance(message.content, list):
        return message.content
    parts: list[dict[str, str]] = []
    for part in message.content:
        if isinstance(part, ImageChunk):
            raise ValidationError(
                f"`messages[{place}].content` holds an image, and this version of the server "
                "takes text only. Remove the image"
            )
        parts.append({"type": "text", "text": part.text})
    return parts
