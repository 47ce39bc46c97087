"""`/vertex`, and the route that Vertex AI names in AIP_PREDICT_ROUTE."""

from __future__ import annotations

from tgi_async.api.body import JsonBody, JsonBodyVariants
from tgi_async.api.chat.schema import ChatRequest
from tgi_async.api.cloud.batch import generate_texts
from tgi_async.api.cloud.schema import (
    VertexInstance,
    VertexParameters,
    VertexRequest,
    VertexResponse,
)
from tgi_async.api.generate.schema import GenerateRequest
from tgi_async.api.operation import Post
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.service import Service
from tgi_async.api.unknown_fields import unknown_fields
from tgi_async.api.unsupported import ignored, refuse_unsupported
from tgi_async.errors import ServerError

_SHAPES: JsonBodyVariants[VertexInstance | ChatRequest] = JsonBodyVariants(
    {"inputs": VertexInstance, "messages": ChatRequest}
)


class NoInstances(ServerError):
    """There is nothing to predict."""

    status = 422
    error_type = "Input validation error"
    failure = "validation"


async def vertex(
    service: Service, body: VertexRequest, context: RequestContext
) -> Reply[VertexResponse]:
    """Answer with one text for each instance."""
    if not body.instances:
        raise NoInstances("Input validation error")
    requests = [_request(service, bytes(instance), context) for instance in body.instances]
    texts = await generate_texts(service, requests, context)
    return Reply(VertexResponse(texts))


def _request(
    service: Service, raw: bytes, context: RequestContext
) -> GenerateRequest | ChatRequest:
    instance = _SHAPES.decode(raw)
    unknown = unknown_fields(raw, type(instance))
    named = ignored(unknown)
    of_tgi_only = service.limits.dialect.reads_fields_of_tgi_only
    if isinstance(instance, ChatRequest) and not of_tgi_only:
        refuse_unsupported(unknown, named)
    context.ignore(f"instances.{path}" for path in named)
    if isinstance(instance, ChatRequest):
        return instance
    parameters = instance.given
    if of_tgi_only:
        parameters = VertexParameters(
            max_new_tokens=parameters.max_new_tokens, seed=parameters.seed
        )
    return GenerateRequest(instance.inputs, parameters)


OPERATION = Post(
    path="/vertex",
    tag="cloud",
    summary="Vertex AI's route: a text for each instance",
    handler=vertex,
    body=JsonBody(VertexRequest),
    parts=(VertexInstance, ChatRequest),
    reply=(VertexResponse,),
)
