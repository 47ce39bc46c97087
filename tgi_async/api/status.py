"""Routes without a body: health, `/info`, `/v1/models`, `/metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import UNSET, Struct, UnsetType

from tgi_async.api.operation import Get
from tgi_async.api.result import Reply, TextReply
from tgi_async.api.service import Service
from tgi_async.errors import NotFound, Unhealthy
from tgi_async.telemetry.instruments import CONTENT_TYPE

TGI_VERSION = "3.3.7"
"""The TGI version whose contract this server keeps."""
HEALTHY = "There is a worker to serve."


class Info(Struct, frozen=True, kw_only=True):
    """`version` is TGI's, from which clients derive its features.

    `speculate` is how many drafts are verified for a text in a step, at most; 0 for none.
    `quantization` is the method and the bits of the weights, null for plain ones; `weight_bytes`
    what they take; `kv_cache_dtype` what keys and values are stored as. `sha` and `docker_label`
    are the commit and the label of the image, null for a Python package.
    """

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    tgi_async_version: str
    quantization: str | None
    weight_bytes: int
    kv_cache_dtype: str
    speculate: int
    sha: str | None
    docker_label: str | None


class ModelInfo(Struct, frozen=True, kw_only=True):
    """One name of the model. `created` is when the server started, in seconds since 1970.

    `owned_by` is the model's id whatever its name, as in TGI. `max_model_len` is vLLM's: the most
    tokens of prompt and completion together.
    """

    id: str
    owned_by: str
    object: str = "model"
    created: int = 0
    max_model_len: int | UnsetType = UNSET


class ModelsInfo(Struct, frozen=True):
    data: list[ModelInfo]
    object: str = "list"


def health(service: Service, path: Mapping[str, str]) -> None:
    """Answer with an empty body.

    Raises:
        Unhealthy: there is no worker to serve, or the server is about to stop.
    """
    if not service.engine.ready:
        raise Unhealthy


def live(service: Service, path: Mapping[str, str]) -> None:
    """Answer with an empty body, as long as this process lives."""


def info(service: Service, path: Mapping[str, str]) -> Reply[Info]:
    """Describe the model and the limits."""
    limits = service.limits
    return Reply(
        Info(
            model_id=limits.model_id,
            model_sha=limits.revision,
            model_pipeline_tag=service.pipeline_tag,
            max_concurrent_requests=limits.max_concurrent_requests,
            max_best_of=limits.max_best_of,
            max_stop_sequences=limits.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=limits.validation_workers,
            max_client_batch_size=limits.max_client_batch_size,
            router="text-generation-router",
            version=TGI_VERSION,
            tgi_async_version=service.build.version,
            quantization=limits.quantization,
            weight_bytes=limits.weight_bytes,
            kv_cache_dtype=limits.kv_cache_dtype,
            speculate=limits.max_drafts,
            sha=service.build.sha,
            docker_label=service.build.docker_label,
        )
    )


def models(service: Service, path: Mapping[str, str]) -> Reply[ModelsInfo]:
    """List the one model under each of its names."""
    names = service.limits.model_names
    return Reply(ModelsInfo([_model_info(service, name) for name in names]))


def model(service: Service, path: Mapping[str, str]) -> Reply[ModelInfo]:
    """Show the model under one of its names, which may have slashes.

    Raises:
        NotFound: it has other names.
    """
    names, name = service.limits.model_names, path["model"]
    if name not in names:
        raise NotFound(
            f"The model `{name[:200]}` does not exist. Its names: {', '.join(names)}",
            code="model_not_found",
            param="model",
        )
    return Reply(_model_info(service, name))


def _model_info(service: Service, name: str) -> ModelInfo:
    limits = service.limits
    if not limits.dialect.shows_model_details:
        return ModelInfo(id=name, owned_by=limits.model_id)
    return ModelInfo(
        id=name,
        owned_by=limits.model_id,
        created=service.started,
        max_model_len=limits.max_total_tokens,
    )


def metrics(service: Service, path: Mapping[str, str]) -> TextReply:
    """Return the metrics in Prometheus' text format."""
    return TextReply(service.metrics.expose(service.engine), CONTENT_TYPE.decode())


def health_operation(path: str) -> Get:
    """Return the operation that says at this path whether the server is ready."""
    return Get(
        path=path,
        tag="operate",
        summary="Whether the server serves",
        handler=health,
        success=HEALTHY,
        failure="503",
    )


MODELS = (
    Get(
        path="/v1/models",
        tag="openai",
        summary="The model's names",
        handler=models,
        reply=(ModelsInfo,),
        openai=True,
    ),
    Get(
        path="/v1/models/{model:path}",
        tag="openai",
        summary="The model under one name",
        handler=model,
        reply=(ModelInfo,),
        failure="404",
        openai=True,
    ),
)

OPERATE = (
    health_operation("/"),
    health_operation("/health"),
    health_operation("/health/ready"),
    Get(path="/health/live", tag="operate", summary="Whether the process answers", handler=live),
    health_operation("/ping"),
    Get(
        path="/info",
        tag="operate",
        summary="The model and the limits",
        handler=info,
        reply=(Info,),
    ),
    Get(
        path="/metrics",
        tag="operate",
        summary="Prometheus metrics",
        handler=metrics,
        text="text/plain",
    ),
)
