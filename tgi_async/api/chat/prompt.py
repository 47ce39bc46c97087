"""Render the prompt of a chat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tgi_async.api.chat.functions import with_calls
from tgi_async.api.chat.history import behind_last, in_front, without_calls
from tgi_async.api.chat.schema import (
    ChatRequest,
    ImageChunk,
    MessageBody,
    ReasoningChunk,
    RefusalChunk,
    ThinkingChunk,
)
from tgi_async.api.chat.thinking import thinking_variables
from tgi_async.api.chat.tools import Offer, format_for
from tgi_async.api.service import Service
from tgi_async.errors import TemplateError, ValidationError
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tools.tgi import tool_text

SILENT = ("assistant", "tool", "function")
"""Roles whose messages may be empty: an answer that was cut before its first word, or a tool
without a result."""


async def prompt_of(service: Service, body: ChatRequest, offer: Offer | None) -> str:
    """Render the model's template, off the event loop and for a bounded time.

    Call it while holding a permit: permits bound the queue of the template's processes.

    Raises:
        TemplateError: there is no template, it refuses these messages, or it takes too long.
        ValidationError: the messages or the template's variables are not allowed.
    """
    dialect = service.limits.dialect
    bodies = enumerate(with_calls(body.messages))
    messages = [_message(place, message) for place, message in bodies]
    fields = {} if dialect.reads_fields_of_tgi_only else _template_fields(body)
    template = service.chat_template
    if template is None:
        raise TemplateError("template not found")
    if not messages and not dialect.allows_empty_chat:
        raise ValidationError("`messages` cannot be empty")
    try:
        messages, tools = _with_tools(service, template, body, offer, messages, fields)
    except RecursionError as error:
        raise TemplateError(
            "the tools or calls cannot be shown: they are nested too deep"
        ) from error
    render = partial(template.render, messages, tools=tools, **fields)
    return await asyncio.get_running_loop().run_in_executor(template.threads, render)


def _with_tools(
    service: Service,
    template: ChatTemplate,
    body: ChatRequest,
    offer: Offer | None,
    messages: list[dict[str, Any]],
    fields: dict[str, Any],
) -> tuple[list[dict[str, Any]], Sequence[Mapping[str, Any]] | None]:
    """Return messages and tools for the template; one that shows no tools gets them in a message.

    `tool_prompt` is added after the last message; in TGI there always is one.
    """
    like_tgi = service.limits.dialect.calls_tools_like_tgi
    if not like_tgi and not template.traits.shows_calls:
        messages = without_calls(messages, format_for(service))
    if offer is None:
        return messages, None
    variable = template.traits.tools_variable
    if like_tgi or body.tool_prompt is not None:
        said = tool_text(offer.tools, body.tool_prompt, shown=variable is not None)
        messages = behind_last(messages, said)
    elif variable is None:
        messages = in_front(messages, format_for(service).described(offer.tools))
    if variable == "xml_tools" and not like_tgi:
        functions = [tool["function"] for tool in offer.tools]
        fields["variables"] = {"xml_tools": functions, **fields["variables"]}
    return messages, offer.tools


def _template_fields(body: ChatRequest) -> dict[str, Any]:
    """Return the fields for the template that TGI does not have."""
    if body.continue_final_message and body.add_generation_prompt:
        raise ValidationError(
            "`continue_final_message` and `add_generation_prompt` exclude each other: the prompt "
            "ends either inside the last message or at the beginning of a new one. Send one of them"
        )
    variables = {**thinking_variables(body), **(body.chat_template_kwargs or {})}
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


def _message(place: int, message: MessageBody) -> dict[str, Any]:
    """Return the message as a template sees it, with null for missing fields."""
    content, in_parts = _content(place, message)
    thoughts = message.reasoning_content or message.reasoning or message.thinking or in_parts
    if content is None and (thoughts or (message.role in SILENT and not message.tool_calls)):
        content = ""
    if content is None and not message.tool_calls:
        raise ValidationError(
            f"`messages[{place}].content` must be a text or a list of text parts. Given: null"
        )
    return {
        "role": message.role,
        "content": content,
        "name": message.name,
        "tool_calls": [_without_nulls(call) for call in message.tool_calls or ()] or None,
        "tool_call_id": message.tool_call_id,
        "reasoning_content": thoughts or message.reasoning_content,
    }


def _without_nulls(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if value is not None}


def _content(place: int, message: MessageBody) -> tuple[str | list[dict[str, str]] | None, str]:
    """Return the message's content and its reasoning.

    A refusal is what the assistant said.
    """
    if not isinstance(message.content, list):
        return message.content or message.refusal or message.content, ""
    parts: list[dict[str, str]] = []
    thoughts: list[str] = []
    for part in message.content:
        if isinstance(part, ImageChunk):
            raise ValidationError(
                f"`messages[{place}].content` holds an image, and this version of the server "
                "takes text only. Remove the image"
            )
        if isinstance(part, ThinkingChunk | ReasoningChunk):
            thoughts.append(part.text)
        else:
            text = part.refusal if isinstance(part, RefusalChunk) else part.text
            parts.append({"type": "text", "text": text})
    return parts, "".join(thoughts)
