"""Generate several texts of one body, each as if it had come alone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tgi_async.api.chat.handler import answer_whole
from tgi_async.api.chat.schema import ChatRequest
from tgi_async.api.encoding import encode
from tgi_async.api.generate.handler import generate
from tgi_async.api.generate.schema import GenerateRequest
from tgi_async.api.limits import set_by
from tgi_async.api.request_context import RequestContext
from tgi_async.api.service import Service
from tgi_async.errors import ServerError, ValidationError


class InferenceFailed(ServerError):
    """TGI's error for any failure in these routes."""

    error_type = "Incomplete generation"
    failure = "incomplete"


async def generate_texts(
    service: Service, requests: Sequence[GenerateRequest | ChatRequest], context: RequestContext
) -> list[str]:
    """Return the texts, in order. The first failure ends the others.

    Raises:
        ServerError: that of the first that failed; TGI does not say why.
    """
    most = service.limits.max_concurrent_requests
    if len(requests) > most:
        raise ValidationError(
            f"at most {most} texts can be in one body. Given: {len(requests)}"
            + set_by(service.limits, "--max-concurrent-requests")
        )
    n_bytes = context.n_bytes // max(len(requests), 1)
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(_generate_text(service, request, context.part(n_bytes)))
                for request in requests
            ]
    except BaseExceptionGroup as failures:
        first = failures.exceptions[0]
        if not service.limits.dialect.explains_errors and isinstance(first, ServerError):
            raise InferenceFailed("Incomplete generation") from None
        raise first from None
    return [task.result() for task in tasks]


async def _generate_text(
    service: Service, request: GenerateRequest | ChatRequest, context: RequestContext
) -> str:
    if isinstance(request, GenerateRequest):
        return (await generate(service, request, context)).body.generated_text
    message = (await answer_whole(service, request, context)).body.choices[0].message
    if message.content:
        return message.content
    # The reply has room for a text only, so calls are shown as JSON.
    return encode(message.tool_calls).decode() if message.tool_calls else ""
