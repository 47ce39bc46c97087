"""KServe's V2 inference protocol, as TGI speaks it: texts travel as lists of bytes."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tgi_async.api.batch import generate_texts
from tgi_async.api.operations import json_response, unhealthy_response
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.schemas.cloud import (
    InferenceInput,
    InferenceOutput,
    InferenceRequest,
    InferenceResponse,
    Liveness,
    Metadata,
    Readiness,
)
from tgi_async.api.service import Service
from tgi_async.errors import ServerError, ValidationError


class NotText(ServerError):
    """The bytes of an input are no text."""

    status = 422
    error_type = "utf8"
    failure = "validation"


class LengthMismatch(ServerError):
    """Not as many outputs as inputs."""

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


class KServe:
    """The protocol's routes that take no body. Each method is a route."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def server(self, request: Request) -> Response:
        """What this server is."""
        extensions = ["health", "models", "metrics"]
        return json_response(
            Metadata("text-generation-inference", self._service.version, extensions)
        )

    async def model(self, request: Request) -> Response:
        """The model under the name that it was asked for."""
        path = request.path_params
        return json_response(Metadata(path["model"], path["version"], ["infer", "ready"]))

    async def live(self, request: Request) -> Response:
        """Whether this process answers."""
        return json_response(Liveness(True))

    async def ready(self, request: Request) -> Response:
        """Whether there is a worker to serve; 503 where there is none."""
        if not self._service.engine.ready:
            return unhealthy_response()
        return json_response(Readiness(live=True, ready=True))


def _text(place: int, given: InferenceInput) -> str:
    try:
        return bytes(given.data).decode()
    except UnicodeDecodeError as error:
        raise NotText(f"`inputs[{place}].data` is not UTF-8: {error.reason}") from None


def _output(name: str, data: bytes) -> InferenceOutput:
    return InferenceOutput(name, [1, len(data)], "BYTES", list(data))
