"""`/info` and `/v1/models`."""

from __future__ import annotations

from msgspec import UNSET, Struct, UnsetType


class Info(Struct, frozen=True, kw_only=True):
    """`version` is that of TGI, whose clients look at it to know what they may ask for.

    `sha` and `docker_label` describe a build, which a Python package is not: null.
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
    sha: None = None
    docker_label: None = None


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
