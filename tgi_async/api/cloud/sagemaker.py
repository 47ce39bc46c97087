"""`/invocations`, SageMaker's one route for everything."""

from __future__ import annotations

from tgi_async.api.body import JsonBodyVariants
from tgi_async.api.chat.handler import chat
from tgi_async.api.chat.schema import ChatCompletion, ChatCompletionChunk, ChatRequest
from tgi_async.api.completions.handler import completions
from tgi_async.api.completions.schema import Completion, CompletionRequest
from tgi_async.api.dialect import Dialect
from tgi_async.api.error_schema import ErrorBody
from tgi_async.api.generate.handler import compat_generate
from tgi_async.api.generate.schema import (
    CompatGenerateRequest,
    GenerateResponse,
    StreamResponse,
)
from tgi_async.api.openai.answers import stream_error_type
from tgi_async.api.operation import Post
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Result
from tgi_async.api.service import Service

SagemakerRequest = CompatGenerateRequest | ChatRequest | CompletionRequest


async def invocations(service: Service, body: SagemakerRequest, context: RequestContext) -> Result:
    """Answer as the route of this body does: `/`, chat or completions."""
    if isinstance(body, CompatGenerateRequest):
        return await compat_generate(service, body, context)
    if isinstance(body, ChatRequest):
        return await chat(service, body, context)
    return await completions(service, body, context)


def operation(dialect: Dialect) -> Post[SagemakerRequest]:
    """Return the operation of this file."""
    return Post(
        path="/invocations",
        tag="cloud",
        summary="SageMaker's route: does what `/`, chat or completions does, by the body's shape",
        handler=invocations,
        body=JsonBodyVariants[SagemakerRequest](
            {"inputs": CompatGenerateRequest, "messages": ChatRequest, "prompt": CompletionRequest}
        ),
        reply=(list[GenerateResponse], ChatCompletion, Completion),
        events=(
            StreamResponse,
            ErrorBody,
            ChatCompletionChunk,
            Completion,
            stream_error_type(dialect),
        ),
        timed=True,
    )
