"""`/invocations`, SageMaker's one route for everything."""

from __future__ import annotations

from tgi_async.api.body import Shapes
from tgi_async.api.chat import chat
from tgi_async.api.completions import completions
from tgi_async.api.generate import compat_generate
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Result
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.completions import CompletionRequest
from tgi_async.api.schemas.generate import CompatGenerateRequest
from tgi_async.api.service import Service

SagemakerRequest = CompatGenerateRequest | ChatRequest | CompletionRequest

SHAPES: Shapes[SagemakerRequest] = Shapes(
    {"inputs": CompatGenerateRequest, "messages": ChatRequest, "prompt": CompletionRequest}
)


async def invocations(service: Service, body: SagemakerRequest, context: RequestContext) -> Result:
    """Answer as the route does that takes this shape: `/`, chat or completions."""
    if isinstance(body, CompatGenerateRequest):
        return await compat_generate(service, body, context)
    if isinstance(body, ChatRequest):
        return await chat(service, body, context)
    return await completions(service, body, context)
