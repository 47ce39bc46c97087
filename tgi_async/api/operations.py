"""The routes of an operator, which take no body: health, `/info`, `/v1/models`, `/metrics`."""

from __future__ import annotations

import time

from starlette.requests import Request
from starlette.responses import Response

from tgi_async.api.encoding import encode
from tgi_async.api.error_reply import as_tgi, form_of
from tgi_async.api.schemas.info import Info, ModelInfo, ModelsInfo
from tgi_async.api.service import Service
from tgi_async.errors import NotFound, Unhealthy
from tgi_async.telemetry.instruments import CONTENT_TYPE

TGI_VERSION = "3.3.7"
"""The version whose contract is kept here."""


class Operations:
    """Each method is a route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._started = int(time.time())

    async def health(self, request: Request) -> Response:
        """Empty 200, or 503 while there is no worker to serve or the server is about to stop."""
        return Response() if self._service.engine.ready else unhealthy_response()

    async def live(self, request: Request) -> Response:
        """Empty 200 for as long as this process answers."""
        return Response()

    async def info(self, request: Request) -> Response:
        """What is served, and within which limits."""
        limits = self._service.limits
        return json_response(
            Info(
                model_id=limits.model_id,
                model_sha=limits.revision,
                model_pipeline_tag=limits.model_pipeline_tag,
                max_concurrent_requests=limits.max_concurrent_requests,
                max_best_of=limits.max_best_of,
                max_stop_sequences=limits.max_stop_sequences,
                max_input_tokens=limits.max_input_tokens,
                max_total_tokens=limits.max_total_tokens,
                validation_workers=limits.validation_workers,
                max_client_batch_size=limits.max_client_batch_size,
                router="text-generation-router",
                version=TGI_VERSION,
                tgi_async_version=self._service.version,
            )
        )

    async def models(self, request: Request) -> Response:
        """The one model, under each of its names."""
        names = self._service.limits.model_names
        return json_response(ModelsInfo([self._model(name) for name in names]))

    async def model(self, request: Request) -> Response:
        """The model under one of its names, which may have slashes."""
        limits, name = self._service.limits, request.path_params["model"]
        if name in limits.model_names:
            return json_response(self._model(name))
        unknown = NotFound(
            f"The model `{name[:200]}` does not exist. Its names: {', '.join(limits.model_names)}",
            code="model_not_found",
            param="model",
        )
        return form_of("/v1", limits)(unknown).response()

    def _model(self, name: str) -> ModelInfo:
        limits = self._service.limits
        if not limits.dialect.shows_model_details:
            return ModelInfo(id=name, owned_by=limits.model_id)
        return ModelInfo(
            id=name,
            owned_by=limits.model_id,
            created=self._started,
            max_model_len=limits.max_total_tokens,
        )

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return Response(
            self._service.metrics.expose(self._service.engine),
            headers={"content-type": CONTENT_TYPE.decode()},
        )


def unhealthy_response() -> Response:
    """A 503 that says when to ask again."""
    return as_tgi(Unhealthy()).response()


def json_response(body: object) -> Response:
    """A 200 with this body."""
    return Response(encode(body), media_type="application/json")
