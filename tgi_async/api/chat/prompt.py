"""Render the prompt of a chat."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from tgi_async.api.chat.functions import with_calls
from tgi_async.api.chat.history import behind_last, in_front, without_calls
from tgi_async.api.chat.schema import (
    AnyImageChunk,
    ChatRequest,
    MessageBody,
    ReasoningChunk,
    RefusalChunk,
    ThinkingChunk,
)
from tgi_async.api.chat.thinking import thinking_variables
from tgi_async.api.chat.tools import Offer, format_for
from tgi_async.api.image_prompts import ImagePrompts, Marked, shown_text
from tgi_async.api.service import Service
from tgi_async.errors import TemplateError, ValidationError
from tgi_async.images import markdown
from tgi_async.images.guard import Guard
from tgi_async.images.images import ImageSource
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tools.tgi import tool_text

DETAILS = ("auto", "low", "high")
WRITTEN_BY_CLIENTS = ("system", "developer", "user")
"""Roles in whose texts TGI's markdown is an image. What a model or a tool wrote has no images but
those of parts."""
SILENT = ("assistant", "tool", "function")
"""Roles whose messages may be empty: an answer that was cut before its first word, or a tool
without a result."""


class Prompt(NamedTuple):
    """A rendered chat."""

    text: str
    """As the client knows it: each image is a placeholder."""
    content: str | Marked
    add_special_tokens: bool
    """Whether the tokenizer adds its own."""


async def prompt_of(service: Service, body: ChatRequest, offer: Offer | None) -> Prompt:
    """Render the model's template, off the event loop and for a bounded time.

    Call it while holding a permit: permits bound the queue of the template's processes.

    Raises:
        TemplateError: there is no template, it refuses these messages, or it takes too long.
        ValidationError: the messages or the template's variables are not allowed.
    """
    dialect = service.limits.dialect
    bodies = enumerate(with_calls(body.messages))
    reader = _Reader(service)
    messages = [reader.message(place, message) for place, message in bodies]
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
    loop = asyncio.get_running_loop()
    if (prompts := service.image_prompts) is None:
        render = partial(template.render, messages, tools=tools, **fields)
        text = await loop.run_in_executor(template.threads, render)
        return Prompt(text, text, _begins(service, body, text))
    guard = prompts.guard()
    render = partial(_guarded, guard, template, messages, tools, fields)
    marked = Marked(await loop.run_in_executor(template.threads, render), guard, reader.sources)
    prompts.check_shown(marked)
    text = shown_text(marked)
    return Prompt(text, marked, _begins(service, body, text))


def _begins(service: Service, body: ChatRequest, text: str) -> bool:
    """Return whether the tokenizer adds its special tokens to what a template wrote."""
    if service.limits.dialect.reads_fields_of_tgi_only:
        return False
    if body.add_special_tokens is not None:
        return body.add_special_tokens
    if service.image_prompts is None or not service.limits.dialect.begins_chats:
        return False
    bos = service.tokenizer.bos_token
    return not bos or not text.startswith(bos)


def _guarded(
    guard: Guard,
    template: ChatTemplate,
    messages: list[dict[str, Any]],
    tools: Sequence[Mapping[str, Any]] | None,
    fields: Mapping[str, Any],
) -> str:
    """Render, with what looks like an image hidden wherever a client wrote it.

    Of an image's part the text is the placeholder, which is not the client's.
    """
    try:
        hidden = {name: guard.hidden(value) for name, value in fields.items()}
        shown = [_hidden(guard, message) for message in messages]
        return template.render(shown, tools=guard.hidden(tools), **hidden)
    except RecursionError as error:
        raise TemplateError("the messages cannot be shown: they are nested too deep") from error
    except (TemplateError, ValidationError) as error:  # with what it was given
        raise type(error)(guard.shown(str(error).removeprefix(error.prefix))) from error


def _hidden(guard: Guard, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message["content"]
    hidden: dict[str, Any] = guard.hidden({**message, "content": None})
    if isinstance(content, list):
        hidden["content"] = [
            part if part["type"] == "image" else guard.hidden(part) for part in content
        ]
    else:
        hidden["content"] = guard.hidden(content)
    return hidden


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


def _without_nulls(call: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in call.items() if value is not None}


Content = str | list[dict[str, str]] | None


class _Reader:
    """Reads messages as templates see them, and collects their images."""

    def __init__(self, service: Service) -> None:
        self._prompts = service.image_prompts
        self._dialect = service.limits.dialect
        self.sources: list[ImageSource] = []

    def message(self, place: int, message: MessageBody) -> dict[str, Any]:
        """Return the message with null for missing fields."""
        content, in_parts = self._content(place, message)
        thoughts = message.reasoning_content or message.reasoning or message.thinking or in_parts
        if content is None and (thoughts or (message.role in SILENT and not message.tool_calls)):
            content = ""
        if content is None and not message.tool_calls:
            raise ValidationError(
                f"`messages[{place}].content` must be a text or a list of parts. Given: null"
            )
        return {
            "role": message.role,
            "content": content,
            "name": message.name,
            "tool_calls": [_without_nulls(call) for call in message.tool_calls or ()] or None,
            "tool_call_id": message.tool_call_id,
            "reasoning_content": thoughts or message.reasoning_content,
        }

    def _content(self, place: int, message: MessageBody) -> tuple[Content, str]:
        """Return the message's content and its reasoning.

        A refusal is what the assistant said.
        """
        field = f"messages[{place}].content"
        if not isinstance(message.content, list):
            text = message.content or message.refusal or message.content
            parts = self._parts_of(text or "", message.role, field)
            return text if parts[0]["type"] == "text" and len(parts) == 1 else parts, ""
        parts = []
        thoughts: list[str] = []
        for number, part in enumerate(message.content):
            if isinstance(part, AnyImageChunk):
                parts.append(self._image(part, field, number))
            elif isinstance(part, ThinkingChunk | ReasoningChunk):
                thoughts.append(part.text)
            else:
                text = part.refusal if isinstance(part, RefusalChunk) else part.text
                parts += self._parts_of(text, message.role, f"{field}[{number}].text")
        return parts, "".join(thoughts)

    def _parts_of(self, text: str, role: str, field: str) -> list[dict[str, str]]:
        """Split a text at the images of TGI's markdown."""
        if self._prompts is None or role not in WRITTEN_BY_CLIENTS:
            return [{"type": "text", "text": text}]
        first, *rest = markdown.split(text)
        parts = [{"type": "text", "text": first}] if first or not rest else []
        for url, behind in zip(rest[::2], rest[1::2], strict=True):
            parts.append(self._part_of(self._prompts, ImageSource(url, field=field)))
            if behind:
                parts.append({"type": "text", "text": behind})
        return parts

    def _image(self, part: AnyImageChunk, field: str, number: int) -> dict[str, str]:
        field = f"{field}[{number}]"
        if self._prompts is None:
            raise ValidationError(
                f"`{field}` is an image, and this model takes none. Remove the image, or ask a "
                "server whose /info says image-text-to-text"
            )
        given = part.given
        field = f"{field}.{part.place}"
        if not given.url:
            raise ValidationError(
                f"`{field}` must be the image's URL, data:image/png;base64,... or https://... "
                "Given: nothing"
            )
        detail = given.detail
        if detail is None or self._dialect.reads_fields_of_tgi_only:
            detail = "auto"
        elif detail not in DETAILS:
            raise ValidationError(
                f"`{field.removesuffix('.url')}.detail` must be one of {', '.join(DETAILS)}. "
                f"Given: {detail[:40]}"
            )
        return self._part_of(self._prompts, ImageSource(given.url, detail, field))

    def _part_of(self, prompts: ImagePrompts, source: ImageSource) -> dict[str, str]:
        if len(self.sources) == prompts.max_images:  # there may be a hundred thousand more
            raise ValidationError(
                f"`{source.field}` is one too many: a request may have at most "
                f"{prompts.max_images} images. The limit is set by the server's "
                "--max-images-per-request"
            )
        self.sources.append(source)
        return {"type": "image", "text": prompts.family.placeholder}
