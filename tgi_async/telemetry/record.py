"""The record of one HTTP request, for its log line and its span.

The record travels in a context variable, as traces do: `Observer` puts it there, the metrics and
the engine add what they learn in the course of the request, and it is read at the end. Tasks
that a handler starts inherit it.
"""

from __future__ import annotations

import json
import time
from contextvars import ContextVar
from typing import Any, NamedTuple

from msgspec import structs
from starlette.types import Scope

from tgi_async.generation import FinishReason, GenerationRequest, Timings
from tgi_async.telemetry.failure import reason_of

NAMES = {
    "/generate": "generate",
    "/generate_stream": "generate_stream",
    "/v1/chat/completions": "chat_completions",
    "/v1/completions": "completions",
    "/invocations": "sagemaker_compatibility",
    "/vertex": "vertex_compatibility",
}
"""TGI's names of its handlers, which are also their spans' names."""


class Generated(NamedTuple):
    """One generation of a request, and when it was submitted, by the monotonic clock."""

    submitted: float
    timings: Timings


class RequestRecord:
    """One request. Times are in seconds, summed over its generations.

    `counted`: its body was read and it is in `tgi_request_count`, as those that generate are.
    `began_at` and `first_event_at` are Unix times in nanoseconds; `failure` is the `err` label of
    `tgi_request_failure`, and `reason` what more can be said of it. `request_id` is the reply's
    `x-request-id`, empty until it is known.
    """

    def __init__(self, scope: Scope) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]
        }
        client = scope.get("client")
        self.client: str = client[0] if client else ""
        self.scheme: str = scope.get("scheme", "http")
        self.request_id = ""
        self.began_at = time.time_ns()
        self.first_event_at: int | None = None
        self.status: int | None = None
        self.streamed = False
        self.counted = False
        self.succeeded = False
        self.failure: str | None = None
        self.reason = ""
        self.requests: list[GenerationRequest] = []
        self.generations: list[Generated] = []
        self.finish_reasons: list[FinishReason] = []
        self.n_prompt = self.n_generated = 0
        self.total = self.validation = self.queued = self.inference = 0.0
        self._started = time.monotonic()

    def received(self) -> None:
        """Note that its body was decoded."""
        self.counted = True

    def validated(self, seconds: float, n_prompt: int) -> None:
        """Note that a prompt was found valid, `seconds` after the beginning."""
        self.validation = max(self.validation, seconds)
        self.n_prompt += n_prompt

    def submitted(self, request: GenerationRequest, now: float, timings: Timings) -> None:
        """Add a generation that was submitted to the engine, which fills in `timings`."""
        # A connection may keep the record for long; what the request holds must not be.
        self.requests.append(structs.replace(request, held=()))
        self.generations.append(Generated(now, timings))

    def generated(self, queued: float, inference: float, n_generated: int) -> None:
        """Note that a generation ended by itself."""
        self.queued += queued
        self.inference += inference
        self.n_generated += n_generated

    def failed(self, failure: str, error: Exception | None) -> None:
        """Note that it failed: by an error or, if there is none, because its client left."""
        self.failure = failure
        self.reason = "" if error is None else reason_of(error)

    def ended(self) -> None:
        """Note that everything has been sent, or that the client has left."""
        self.total = time.monotonic() - self._started

    @property
    def ended_at(self) -> int:
        """The end as a Unix time in nanoseconds, as `began_at`."""
        return self.began_at + round(self.total * 1e9)

    def unix_time(self, moment: float) -> int:
        """Return the Unix time of a moment of the monotonic clock, in nanoseconds."""
        return self.began_at + round((moment - self._started) * 1e9)

    @property
    def time_per_token(self) -> float:
        return self.inference / max(self.n_generated, 1)

    @property
    def name(self) -> str:
        """TGI's name of the handler."""
        if self.path == "/":
            return "generate_stream" if self.streamed else "generate"
        if self.path.startswith("/v2/"):
            return "kserve_model_infer"
        # The only route whose path the operator chooses is the one for Vertex AI.
        return NAMES.get(self.path, "vertex_compatibility")

    @property
    def seed(self) -> int | None:
        """The seed of the first generation, where it draws random numbers."""
        if not self.requests or not self.requests[0].sampling.do_sample:
            return None
        return self.requests[0].sampling.seed

    def tgi_fields(self) -> dict[str, str]:
        """Return the fields of TGI's spans, with times in TGI's format; empty until they are
        known."""
        known = self.succeeded
        times = {
            "total_time": self.total,
            "validation_time": self.validation,
            "queue_time": self.queued,
            "inference_time": self.inference,
            "time_per_token": self.time_per_token,
        }
        return {
            "parameters": self._parameters(),
            **{name: duration(seconds) if known else "" for name, seconds in times.items()},
            "seed": "None" if self.seed is None else f"Some({self.seed})",
        }

    def _parameters(self) -> str:
        if not self.requests:
            return ""
        request = self.requests[0]
        found: dict[str, Any] = structs.asdict(request.sampling)
        for name in ("seed", "choice", "biased_ids", "biases", "end_ids", "banned"):
            del found[name]
        found |= {"max_new_tokens": request.max_new_tokens, "stop": request.stop}
        return json.dumps(found)


_CURRENT: ContextVar[RequestRecord | None] = ContextVar("record", default=None)
current = _CURRENT.get
"""The record of the request that this task works for, if any."""
enter = _CURRENT.set
leave = _CURRENT.reset


def duration(seconds: float) -> str:
    """Format a duration as `1.5s`, `12.345678ms`, `3.2µs` or `80ns`: to the nanosecond, as TGI
    does."""
    nanoseconds = round(seconds * 1e9)
    for unit, size in (("s", 10**9), ("ms", 10**6), ("µs", 10**3)):
        if nanoseconds >= size:
            whole, rest = divmod(nanoseconds, size)
            digits = f"{rest:0{len(str(size)) - 1}d}".rstrip("0")
            return f"{whole}.{digits}{unit}" if digits else f"{whole}{unit}"
    return f"{nanoseconds}ns"
