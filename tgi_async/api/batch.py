"""Several texts in one body, each generated as if it had come alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from msgspec import Struct, structs

from tgi_async.api.chat import chat
from tgi_async.api.exchange import Captured, Exchange
from tgi_async.api.generate import generate
from tgi_async.api.limits import set_by
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.generate import GenerateRequest
from tgi_async.api.service import Service
from tgi_async.errors import ServerError, ValidationError


class InferenceFailed(ServerError):
    """All that TGI tells of a failure in these routes."""

    error_type = "Incomplete generation"
    failure = "incomplete"


class _Generated(Struct):
    generated_text: str


class _Message(Struct):
    content: str | None = None
    tool_calls: msgspec.Raw = msgspec.Raw(b"")


class _Choice(Struct):
    message: _Message


class _Chat(Struct):
    choices: list[_Choice]


async def generate_texts(
    service: Service, requests: Sequence[GenerateRequest | ChatRequest], exchange: Exchange
) -> list[str]:
    """The texts, in order. The first failure ends the others.

    Raises:
        ServerError: that of the first that failed; TGI does not say why.
    """
    most = service.limits.max_concurrent_requests
    if len(requests) > most:
        raise ValidationError(
            f"at most {most} texts can be in one body. Given: {len(requests)}"
            + set_by(service.limits, "--max-concurrent-requests")
        )
    n_bytes = exchange.n_bytes // max(len(requests), 1)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_generate_text(service, request, Captured(exchange, n_bytes)))
                for request in requests
            ]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        if not service.limits.dialect.explains_errors and isinstance(first, ServerError):
            raise InferenceFailed("Incomplete generation") from None
        raise first from None
    return [task.result() for task in tasks]


async def _generate_text(
    service: Service, request: GenerateRequest | ChatRequest, inner: Captured
) -> str:
    if isinstance(request, GenerateRequest):
        await generate(service, request, inner)
        return msgspec.json.decode(inner.body, type=_Generated).generated_text
    await chat(service, structs.replace(request, stream=False), inner)
    reply = msgspec.json.decode(inner.body, type=_Chat)
    message = reply.choices[0].message
    # A text is all that there is room for, so calls are told as JSON.
    return message.content or bytes(message.tool_calls).decode()
