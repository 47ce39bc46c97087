"""`/info` and `/v1/models`."""

from __future__ import annotations

from msgspec import Struct


class Info(Struct, frozen=True, kw_only=True):
    """`sha` and `docker_label` describe a build, which a Python package is not: null."""

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
    sha: None = None
    docker_label: None = None


class ModelInfo(Struct, frozen=True):
    id: str
    owned_by: str
    object: str = "model"
    created: int = 0


class ModelsInfo(Struct, frozen=True):
    data: list[ModelInfo]
    object: str = "list"
