"""The limits of requests."""

from __future__ import annotations

from dataclasses import dataclass

from tgi_async.api.dialect import Dialect
from tgi_async.keys import KeyFile
from tgi_async.text.sampling_defaults import SamplingDefaults


def set_by(limits: Limits, *flags: str) -> str:
    """Return the end of a message about a limit: the flags that set it, which TGI does not name."""
    if not limits.dialect.explains_errors:
        return ""
    return f". The limit is set by the server's {' and '.join(flags)}"


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of requests: the settings, completed by what the model and the memory allow.

    A field that a setting has the name of is that setting. Counts are of requests, sequences or
    tokens; sizes are in bytes.
    """

    model_id: str
    model_names: tuple[str, ...]
    """Names of the model for clients, at least one; replies have the first one."""
    revision: str | None
    model_pipeline_tag: str | None
    quantization: str | None
    """Method and bits of the weights; None: they are not quantized."""
    weight_bytes: int
    """What the weights take, on all ranks together."""
    kv_cache_dtype: str
    """What keys and values are stored as."""
    max_drafts: int
    """Most drafts that are verified for a text in a step; 0: there is no speculation."""
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_top_n_tokens: int
    max_input_tokens: int
    max_total_tokens: int
    max_client_batch_size: int
    """Most prompts in one `/v1/completions` body."""
    validation_workers: int
    """Threads that tokenize and render chat templates."""
    payload_limit: int
    """Largest request body, in bytes."""
    api_key: str | None
    key_file: KeyFile | None
    """Further API keys; None: there is no such file."""
    request_timeout: int | None
    """Seconds that a request has; None: any number."""
    prefix_cache_salt: str
    """`tenant`: no tenant finds another's prefixes in the cache; else `none`."""
    cors_allow_origin: tuple[str, ...]
    """Origins that browsers may call from; empty: any."""
    sampling_defaults: SamplingDefaults
    """Sampling parameters of the OpenAI routes for requests that leave them unset."""
    dialect: Dialect
    """How the API differs from TGI."""
    tool_call_parser: str | None
    """Name of the format of tool calls; None: as the chat template shows it."""
    kserve: bool
    """Whether to serve the routes of KServe's V2 protocol."""
    resume_window: int
    """Seconds for which a stream goes on without its client; 0: streams cannot be resumed."""
    root_path: str | None
    """Path that the server is below for its clients; None: it is at the top."""
