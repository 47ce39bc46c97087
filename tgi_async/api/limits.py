"""The settings that the API reads. The server's settings object satisfies this as it is."""

from __future__ import annotations

from typing import Protocol

from tgi_async.api.dialect import Dialect
from tgi_async.text.sampling_defaults import SamplingDefaults


def set_by(limits: Limits, *flags: str) -> str:
    """Return the end of a message about a limit: the flags that set it, which TGI does not name."""
    if not limits.dialect.explains_errors:
        return ""
    return f". The limit is set by the server's {' and '.join(flags)}"


class Limits(Protocol):
    """Read-only settings. Counts are of requests, sequences or tokens; sizes are in bytes."""

    @property
    def model_id(self) -> str: ...

    @property
    def model_names(self) -> tuple[str, ...]:
        """What clients may call the model, at least one name; replies have the first one."""

    @property
    def revision(self) -> str | None: ...

    @property
    def model_pipeline_tag(self) -> str | None: ...

    @property
    def max_concurrent_requests(self) -> int: ...

    @property
    def max_best_of(self) -> int: ...

    @property
    def max_stop_sequences(self) -> int: ...

    @property
    def max_top_n_tokens(self) -> int: ...

    @property
    def max_input_tokens(self) -> int: ...

    @property
    def max_total_tokens(self) -> int: ...

    @property
    def max_client_batch_size(self) -> int:
        """Most prompts in one `/v1/completions` body."""

    @property
    def validation_workers(self) -> int:
        """Threads that tokenize and render chat templates."""

    @property
    def payload_limit(self) -> int:
        """Largest request body, in bytes."""

    @property
    def api_key(self) -> str | None: ...

    @property
    def cors_allow_origin(self) -> tuple[str, ...]:
        """Origins that browsers may call from; empty: any."""

    @property
    def sampling_defaults(self) -> SamplingDefaults:
        """What the OpenAI routes use for parameters that a request leaves open."""

    @property
    def dialect(self) -> Dialect:
        """What is done otherwise than TGI does it."""

    @property
    def tool_call_parser(self) -> str | None:
        """Name of the format in which the model writes calls; None: as its template shows it."""

    @property
    def kserve(self) -> bool:
        """Whether the routes of KServe's V2 protocol are there."""
