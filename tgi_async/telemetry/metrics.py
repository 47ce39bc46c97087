"""Metrics under TGI's names (its dashboards work unchanged), and some of our own.

TGI builds batches, merges and filters them, and times that. Here there is one persistent batch.
What its names stand for here is the work of the router at the same moments: `next_size` requests
entered in one step, `concat_duration` is what planning a step took in which they joined running
ones, and `filter_duration` what it took to deliver the results of a step and release the requests
that ended with it. docs/metrics.md lists them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from tgi_async.telemetry import record
from tgi_async.telemetry.drafts import DraftCounter
from tgi_async.telemetry.images import ImageCounts
from tgi_async.telemetry.instruments import Counter, Histogram, gauge
from tgi_async.telemetry.nodes import NodesUp
from tgi_async.wire.messages import MAX_DRAFTS, Sampled

FAILURES = ("validation", "overloaded", "template", "incomplete", "generation", "dropped")
"""Values of `err`: `ServerError.failure`, and `dropped` for a client that left."""
METHODS = ("prefill", "decode")
RESUMPTIONS = ("memory", "recomputed", "mismatched")
"""How a stream went on for a client that came back: the last one is that it could not."""

DURATION_BOUNDS = [0.0001 * 1.5**k for k in range(1, 36)]
"""Seconds, 0.00015 to 145.6."""


class Gauges(Protocol):
    """The engine's current state."""

    @property
    def n_running(self) -> int: ...

    @property
    def n_waiting(self) -> int: ...

    @property
    def used_blocks(self) -> int: ...

    @property
    def cached_blocks(self) -> int: ...

    @property
    def n_blocks(self) -> int: ...

    @property
    def block_size(self) -> int: ...

    @property
    def resident_tokens(self) -> int: ...

    @property
    def worker_restarts(self) -> int: ...


class Metrics:
    """All metrics. Times are in seconds.

    `max_input_tokens` and `max_total_tokens` are split into 100 buckets for the token histograms.
    `max_batch_total_tokens` is the size of the KV cache; 0 where it is not known. `speculation` is
    the method of `max_drafts` drafts; 0: there are none. `images` is None for a model without, and
    `nodes` where there is one.
    """

    def __init__(
        self,
        *,
        max_input_tokens: int,
        max_total_tokens: int,
        max_batch_total_tokens: int = 0,
        speculation: str = "",
        max_drafts: int = 0,
        images: ImageCounts | None = None,
        nodes: NodesUp | None = None,
    ) -> None:
        self._images = images
        self._nodes = nodes
        self._max_batch_total_tokens = max_batch_total_tokens
        inputs = [max_input_tokens / 100 * k for k in range(1, 101)]
        totals = [max_total_tokens / 100 * k for k in range(1, 101)]
        self._count = Counter("tgi_request_count", "Requests received")
        self._success = Counter("tgi_request_success", "Requests answered")
        self._failure = Counter(
            "tgi_request_failure", "Requests that failed, by cause", "err", FAILURES
        )
        self._ignored = Counter(
            "tgi_async_ignored_fields", "Fields of requests that have no effect here"
        )
        self._resumed = Counter(
            "tgi_async_resumed_streams",
            "Streams that a client came back for, by how they went on",
            "how",
            RESUMPTIONS,
        )
        self._duration = _duration("tgi_request_duration", "Whole time of a request")
        self._validation = _duration(
            "tgi_request_validation_duration", "Validation, chat template and tokenization"
        )
        self._queue = _duration("tgi_request_queue_duration", "Wait for the first step")
        self._inference = _duration(
            "tgi_request_inference_duration", "From the first step to the last token"
        )
        self._per_token = _duration(
            "tgi_request_mean_time_per_token_duration", "Inference time by generated tokens"
        )
        self._input_length = Histogram("tgi_request_input_length", "Tokens of a prompt", inputs)
        self._skipped = Histogram(
            "tgi_request_skipped_tokens",
            "Tokens of a step for a request, besides the first, that were accepted drafts",
            range(MAX_DRAFTS + 1),
        )
        self._cached = Histogram(
            "tgi_async_cached_tokens", "Prompt tokens found in the prefix cache", inputs
        )
        self._drafts = DraftCounter(speculation, max_drafts) if max_drafts else None
        self._generated = Histogram(
            "tgi_request_generated_tokens", "Tokens generated for a request", totals
        )
        self._max_new = Histogram(
            "tgi_request_max_new_tokens", "Most tokens that a request may generate", totals
        )
        self._step_count = Counter("tgi_batch_inference_count", "Steps sent", "method", METHODS)
        self._step_success = Counter("tgi_batch_inference_success", "Steps done", "method", METHODS)
        self._step_failure = Counter("tgi_batch_inference_failure", "Steps lost", "method", METHODS)
        self._concat = Counter(
            "tgi_batch_concat",
            "Steps in which requests joined running ones",
            "reason",
            ("chunking",),
        )
        self._step_duration = _duration(
            "tgi_batch_inference_duration", "From sending a step to its result", "method"
        )
        self._forward = _duration("tgi_batch_forward_duration", "Forward pass", "method")
        self._decode = _duration("tgi_batch_decode_duration", "Sampling", "method")
        self._filter = _duration(
            "tgi_batch_filter_duration",
            "Router time to deliver the results of a step and release ended requests",
            "method",
        )
        self._concat_duration = _duration(
            "tgi_batch_concat_duration",
            "Router time to plan a step in which requests joined running ones",
            "method",
        )
        self._next_size = Histogram(
            "tgi_batch_next_size", "Requests that entered in one step", range(1, 1025)
        )

    def request_received(self) -> None:
        """Count a request whose body was decoded."""
        self._count.add()
        if (seen := record.current()) is not None:
            seen.received()

    def request_validated(self, seconds: float, n_prompt: int, max_new_tokens: int) -> None:
        """Record that a prompt was found valid."""
        self._validation.observe(seconds)
        self._input_length.observe(n_prompt)
        self._max_new.observe(max_new_tokens)
        if (seen := record.current()) is not None:
            seen.validated(seconds, n_prompt)

    def request_generated(self, queued: float, inference: float, n_generated: int) -> None:
        """Record a generation that ended by itself."""
        self._queue.observe(queued)
        self._inference.observe(inference)
        self._generated.observe(n_generated)
        if n_generated:
            self._per_token.observe(inference / n_generated)
        if (seen := record.current()) is not None:
            seen.generated(queued, inference, n_generated)

    def request_succeeded(self, seconds: float) -> None:
        """Count a reply that was sent to its end."""
        self._success.add()
        self._duration.observe(seconds)
        if (seen := record.current()) is not None:
            seen.succeeded = True

    def request_failed(self, err: str, error: Exception | None = None) -> None:
        """Count a request that failed; `err` is one of FAILURES."""
        self._failure.add(label=err)
        if (seen := record.current()) is not None:
            seen.failed(err, error)

    def fields_ignored(self, n: int) -> None:
        """Count `n` fields of a request that have no effect."""
        self._ignored.add(n)

    def stream_resumed(self, how: str) -> None:
        """Count a stream that a client came back for; `how` is one of RESUMPTIONS."""
        self._resumed.add(label=how)

    def admitted(self, n_cached: int) -> None:
        """Record that a request entered the running batch; `n_cached` prompt tokens came from the
        cache."""
        self._cached.observe(n_cached)

    def sampled(self, found: Sequence[Sampled]) -> None:
        """Record what the rows of a step sampled."""
        n_plain = len(found)
        if self._drafts is not None:
            self._drafts.add(found)
            for one in found:
                if one.n_computed:
                    self._skipped.observe(one.n_computed)
                    n_plain -= 1
        if n_plain:
            self._skipped.observe(0, n=n_plain)

    def encoded(self, n: int, seconds: float) -> None:
        """Record that a step encoded `n` images."""
        if self._images is not None:
            self._images.encoded(n, seconds)

    def step_sent(
        self, *, n_prefill_tokens: int, n_admitted: int, n_decode: int, plan_seconds: float
    ) -> None:
        """Record that a step was planned, which took `plan_seconds`, and sent to the workers.

        `n_admitted` requests entered in it; `n_decode` of its rows were running before.
        """
        self._step_count.add(label=_method(n_prefill_tokens))
        if n_admitted:
            self._next_size.observe(n_admitted)
            if n_decode:
                self._concat.add(label="chunking")
                # TGI has only this label.
                self._concat_duration.observe(plan_seconds, "decode")

    def step(
        self,
        *,
        n_prefill_tokens: int,
        seconds: float,
        forward_seconds: float,
        sample_seconds: float,
        results_seconds: float,
    ) -> None:
        """Record a step's result, which came `seconds` after the step was sent.

        Delivering it took the router `results_seconds`.
        """
        method = _method(n_prefill_tokens)
        self._step_success.add(label=method)
        self._step_duration.observe(seconds, method)
        self._forward.observe(forward_seconds, method)
        self._decode.observe(sample_seconds, method)
        self._filter.observe(results_seconds, method)

    def step_lost(self, *, n_prefill_tokens: int) -> None:
        """Record a step that will have no result, as its worker died."""
        self._step_failure.add(label=_method(n_prefill_tokens))

    def expose(self, now: Gauges) -> bytes:
        """Return all metrics in the Prometheus text format."""
        parts = [line for instrument in self._instruments() for line in instrument.lines()]
        parts += [gauge(name, text, value) for name, text, value in self._gauges(now)]
        return "".join(parts).encode()

    def _gauges(self, now: Gauges) -> list[tuple[str, str, float]]:
        used = now.used_blocks / now.n_blocks if now.n_blocks else 0.0
        return [
            ("tgi_queue_size", "Requests that wait for admission", now.n_waiting),
            ("tgi_batch_current_size", "Requests in the running batch", now.n_running),
            (
                "tgi_batch_current_max_tokens",
                "Tokens of the running batch, in the KV cache or on their way to it",
                now.resident_tokens,
            ),
            (
                "tgi_batch_max_total_tokens",
                "Most tokens that the running batch can have: the size of the KV cache",
                self._max_batch_total_tokens,
            ),
            ("tgi_async_requests_waiting", "Requests that wait for admission", now.n_waiting),
            ("tgi_async_requests_running", "Requests in the running batch", now.n_running),
            ("tgi_async_kv_cache_usage", "Share of the KV cache in use, from 0 to 1", used),
            ("tgi_async_used_blocks", "KV cache blocks of running requests", now.used_blocks),
            ("tgi_async_cached_blocks", "KV cache blocks kept for their prefix", now.cached_blocks),
            ("tgi_async_total_blocks", "KV cache blocks", now.n_blocks),
            ("tgi_async_block_size", "Tokens of a KV cache block", now.block_size),
            ("tgi_async_worker_restarts", "Restarts of a worker", now.worker_restarts),
        ]

    def _instruments(self) -> list[Counter | Histogram | DraftCounter | ImageCounts | NodesUp]:
        kinds = Counter | Histogram | DraftCounter | ImageCounts | NodesUp
        return [value for value in vars(self).values() if isinstance(value, kinds)]


def _duration(name: str, documentation: str, label: str | None = None) -> Histogram:
    return Histogram(name, documentation, DURATION_BOUNDS, label)


def _method(n_prefill_tokens: int) -> str:
    """Return TGI's method label: a step that computes any prompt token is a prefill."""
    return "prefill" if n_prefill_tokens else "decode"
