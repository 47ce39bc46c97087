"""The routes of an operator: health, `/info`, `/v1/models`, `/metrics`."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from tgi_async.api.exchange import RETRY_AFTER_SECONDS, ErrorBody, encode
from tgi_async.api.schemas.info import Info, ModelInfo, ModelsInfo
from tgi_async.api.service import Service
from tgi_async.errors import Unhealthy
from tgi_async.telemetry.instruments import CONTENT_TYPE


class Operations:
    """Each method is a route."""

    def __init__(self, service: Service) -> None:
        self._service = service

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
                version=self._service.version,
            )
        )

    async def models(self, request: Request) -> Response:
        """The one model."""
        model_id = self._service.limits.model_id
        return json_response(ModelsInfo([ModelInfo(id=model_id, owned_by=model_id)]))

    async def metrics(self, request: Request) -> Response:
        """Prometheus text."""
        return Response(
            self._service.metrics.expose(self._service.engine),
            headers={"content-type": CONTENT_TYPE.decode()},
        )


def unhealthy_response() -> Response:
    """A 503 that says when to ask again."""
    unhealthy = Unhealthy()
    return Response(
        encode(ErrorBody(str(unhealthy), unhealthy.error_type)),
        status_code=unhealthy.status,
        headers={"retry-after": str(RETRY_AFTER_SECONDS)},
        media_type="application/json",
    )


def json_response(body: object) -> Response:
    """A 200 with this body."""
    return Response(encode(body), media_type="application/json")
