"""`/invocations`, SageMaker's one route for everything."""

from __future__ import annotations

from tgi_async.api.body import Shapes
from tgi_async.api.chat import chat
from tgi_async.api.completions import completions
from tgi_async.api.exchange import Exchange
from tgi_async.api.generate import compat_generate
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.completions import CompletionRequest
from tgi_async.api.schemas.generate import CompatGenerateRequest
from tgi_async.api.service import Service

SagemakerRequest = CompatGenerateRequest | ChatRequest | CompletionRequest

SHAPES: Shapes[SagemakerRequest] = Shapes(
    {"inputs": CompatGenerateRequest, "messages": ChatRequest, "prompt": CompletionRequest}
)


async def invocations(service: Service, body: SagemakerRequest, exchange: Exchange) -> None:
    """What the route that takes this shape answers: `/`, chat or completions."""
    if isinstance(body, CompatGenerateRequest):
        await compat_generate(service, body, exchange)
    elif isinstance(body, ChatRequest):
        await chat(service, body, exchange)
    else:
        await completions(service, body, exchange)
