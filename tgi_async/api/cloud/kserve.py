"""KServe's V2 inference protocol, as in TGI: texts are lists of bytes."""

from __future__ import annotations

from collections.abc import Mapping

from tgi_async.api.body import JsonBody
from tgi_async.api.cloud.batch import generate_texts
from tgi_async.api.cloud.schema import (
    InferenceInput,
    InferenceOutput,
    InferenceRequest,
    InferenceResponse,
    Liveness,
    Metadata,
    Readiness,
)
from tgi_async.api.operation import Get, Post
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.service import Service
from tgi_async.api.status import HEALTHY, health
from tgi_async.errors import ServerError, ValidationError


class NotText(ServerError):
    """The bytes of an input are not text."""

    status = 422
    error_type = "utf8"
    failure = "validation"


class LengthMismatch(ServerError):
    """The numbers of inputs and outputs differ."""

    status = 422
    error_type = "length mismatch"
    failure = "validation"


async def infer(
    service: Service, body: InferenceRequest, context: RequestContext
) -> Reply[InferenceResponse]:
    """Answer with one output for each input.

    The path's model and version may be any: there is one model.
    """
    if not body.inputs:
        raise ValidationError("`inputs` cannot be empty")
    if len(body.inputs) != len(body.outputs):
        raise LengthMismatch("Inputs and outputs length mismatch")
    requests = [body.generation(_text(place, given)) for place, given in enumerate(body.inputs)]
    texts = await generate_texts(service, requests, context)
    outputs = [
        _output(asked.name, text.encode()) for asked, text in zip(body.outputs, texts, strict=True)
    ]
    return Reply(InferenceResponse(body.id, outputs))


def server(service: Service, path: Mapping[str, str]) -> Reply[Metadata]:
    """Describe this server."""
    extensions = ["health", "models", "metrics"]
    return Reply(Metadata("text-generation-inference", service.build.version, extensions))


def model(service: Service, path: Mapping[str, str]) -> Reply[Metadata]:
    """Describe the model, under the name in the path."""
    return Reply(Metadata(path["model"], path["version"], ["infer", "ready"]))


def live(service: Service, path: Mapping[str, str]) -> Reply[Liveness]:
    """Answer as long as this process lives."""
    return Reply(Liveness(True))


def ready(service: Service, path: Mapping[str, str]) -> Reply[Readiness]:
    """Answer whether there is a worker to serve.

    Raises:
        Unhealthy: there is none.
    """
    health(service, path)
    return Reply(Readiness(live=True, ready=True))


def _text(place: int, given: InferenceInput) -> str:
    try:
        return bytes(given.data).decode()
    except UnicodeDecodeError as error:
        raise NotText(f"`inputs[{place}].data` is not UTF-8: {error.reason}") from None


def _output(name: str, data: bytes) -> InferenceOutput:
    return InferenceOutput(name, [1, len(data)], "BYTES", list(data))


_MODEL = "/v2/models/{model}/versions/{version}"

OPERATIONS = (
    Post(
        path=f"{_MODEL}/infer",
        tag="kserve",
        summary="A text for each input",
        handler=infer,
        body=JsonBody(InferenceRequest),
        reply=(InferenceResponse,),
        keyed_in_tgi=False,
    ),
    Get(path=_MODEL, tag="kserve", summary="The model", handler=model, reply=(Metadata,)),
    Get(
        path=f"{_MODEL}/ready",
        tag="kserve",
        summary="Whether the model serves",
        handler=ready,
        reply=(Readiness,),
        success=HEALTHY,
        failure="503",
    ),
    Get(
        path="/v2/health/ready",
        tag="kserve",
        summary="Whether the server serves",
        handler=ready,
        reply=(Readiness,),
        success=HEALTHY,
        failure="503",
    ),
    Get(
        path="/v2/health/live",
        tag="kserve",
        summary="Whether the process answers",
        handler=live,
        reply=(Liveness,),
    ),
    Get(path="/v2", tag="kserve", summary="The server", handler=server, reply=(Metadata,)),
)
