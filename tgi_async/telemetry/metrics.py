"""Metrics under TGI's names (its dashboards work unchanged), and some of our own.

TGI's `tgi_batch_filter_duration`, `tgi_batch_concat_duration` and `tgi_batch_next_size` describe
batches that are built, merged and filtered. Here there is one persistent batch, so that only the
last one has a meaning: how many requests entered it in one step.
"""

from __future__ import annotations

from typing import Protocol

from tgi_async.telemetry.instruments import Counter, Histogram, gauge

DURATION_BOUNDS = [0.0001 * 1.5**k for k in range(1, 36)]
"""Seconds, 0.00015 to 145.6."""


class Gauges(Protocol):
    """What the engine is doing now."""

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
    def resident_tokens(self) -> int: ...

    @property
    def worker_restarts(self) -> int: ...


class Metrics:
    """All that is counted and timed. Times are in seconds.

    `max_input_tokens` and `max_total_tokens` are split into 100 buckets for the token histograms.
    """

    def __init__(self, *, max_input_tokens: int, max_total_tokens: int) -> None:
        inputs = [max_input_tokens / 100 * k for k in range(1, 101)]
        totals = [max_total_tokens / 100 * k for k in range(1, 101)]
        self._count = Counter("tgi_request_count", "Requests received")
        self._success = Counter("tgi_request_success", "Requests answered")
        self._failure = Counter("tgi_request_failure", "Requests that failed, by cause", "err")
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
            "tgi_request_skipped_tokens", "Prompt tokens found in the prefix cache", inputs
        )
        self._generated = Histogram(
            "tgi_request_generated_tokens", "Tokens generated for a request", totals
        )
        self._max_new = Histogram(
            "tgi_request_max_new_tokens", "Most tokens that a request may generate", totals
        )
        self._step_count = Counter("tgi_batch_inference_count", "Steps sent", "method")
        self._step_success = Counter("tgi_batch_inference_success", "Steps done", "method")
        self._step_failure = Counter("tgi_batch_inference_failure", "Steps lost", "method")
        self._concat = Counter(
            "tgi_batch_concat", "Steps in which requests joined running ones", "reason"
        )
        self._step_duration = _duration(
            "tgi_batch_inference_duration", "From sending a step to its result", "method"
        )
        self._forward = _duration("tgi_batch_forward_duration", "Forward pass", "method")
        self._decode = _duration("tgi_batch_decode_duration", "Sampling", "method")
        self._next_size = Histogram(
            "tgi_batch_next_size", "Requests that entered in one step", range(1, 1025)
        )

    def request_received(self) -> None:
        """A body was read and understood."""
        self._count.add()

    def request_validated(self, seconds: float, n_prompt: int, max_new_tokens: int) -> None:
        """A prompt was found admissible."""
        self._validation.observe(seconds)
        self._input_length.observe(n_prompt)
        self._max_new.observe(max_new_tokens)

    def request_generated(self, queued: float, inference: float, n_generated: int) -> None:
        """A generation ended by itself."""
        self._queue.observe(queued)
        self._inference.observe(inference)
        self._generated.observe(n_generated)
        if n_generated:
            self._per_token.observe(inference / n_generated)

    def request_succeeded(self, seconds: float) -> None:
        """A reply was sent to its end."""
        self._success.add()
        self._duration.observe(seconds)

    def request_failed(self, err: str) -> None:
        """A request ended with an error; `err` is `ServerError.failure` or `dropped`."""
        self._failure.add(label=err)

    def admitted(self, n_cached: int) -> None:
        """A request entered the running batch; `n_cached` prompt tokens came from the cache."""
        self._skipped.observe(n_cached)

    def step_sent(self, *, n_prefill_tokens: int, n_admitted: int, n_decode: int) -> None:
        """A step was sent to the workers.

        `n_admitted` requests entered in it; `n_decode` of its rows were running before.
        """
        self._step_count.add(label=_method(n_prefill_tokens))
        if n_admitted:
            self._next_size.observe(n_admitted)
            if n_decode:
                self._concat.add(label="chunking")

    def step(
        self,
        *,
        n_prefill_tokens: int,
        seconds: float,
        forward_seconds: float,
        sample_seconds: float,
    ) -> None:
        """A step's result came; `seconds` is the time since it was sent."""
        method = _method(n_prefill_tokens)
        self._step_success.add(label=method)
        self._step_duration.observe(seconds, method)
        self._forward.observe(forward_seconds, method)
        self._decode.observe(sample_seconds, method)

    def step_lost(self, *, n_prefill_tokens: int) -> None:
        """A step will have no result: its worker died."""
        self._step_failure.add(label=_method(n_prefill_tokens))

    def expose(self, now: Gauges) -> bytes:
        """Everything, in the Prometheus text format."""
        parts = [line for instrument in self._instruments() for line in instrument.lines()]
        parts += [
            gauge("tgi_queue_size", "Requests that wait for admission", now.n_waiting),
            gauge("tgi_batch_current_size", "Requests in the running batch", now.n_running),
            gauge(
                "tgi_batch_current_max_tokens", "Tokens of the running batch", now.resident_tokens
            ),
            gauge("tgi_async_used_blocks", "KV cache blocks of running requests", now.used_blocks),
            gauge(
                "tgi_async_cached_blocks",
                "KV cache blocks kept for their prefix",
                now.cached_blocks,
            ),
            gauge("tgi_async_total_blocks", "KV cache blocks", now.n_blocks),
            gauge(
                "tgi_async_worker_restarts",
                "Times that a worker was restarted",
                now.worker_restarts,
            ),
        ]
        return "".join(parts).encode()

    def _instruments(self) -> list[Counter | Histogram]:
        return [value for value in vars(self).values() if isinstance(value, Counter | Histogram)]


def _duration(name: str, documentation: str, label: str | None = None) -> Histogram:
    return Histogram(name, documentation, DURATION_BOUNDS, label)


def _method(n_prefill_tokens: int) -> str:
    """TGI calls a step that computes any prompt token a prefill."""
    return "prefill" if n_prefill_tokens else "decode"
