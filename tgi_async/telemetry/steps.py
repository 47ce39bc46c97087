"""Time the steps from sending them to their results."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from tgi_async.scheduler.plan import Plan
from tgi_async.wire.messages import Sampled, StepDone


class StepMetrics(Protocol):
    """The metrics that a StepTimer records."""

    def admitted(self, n_cached: int) -> None: ...

    def sampled(self, found: Sequence[Sampled]) -> None: ...

    def encoded(self, n: int, seconds: float) -> None: ...

    def step_sent(
        self, *, n_prefill_tokens: int, n_admitted: int, n_decode: int, plan_seconds: float
    ) -> None: ...

    def step(
        self,
        *,
        n_prefill_tokens: int,
        seconds: float,
        forward_seconds: float,
        sample_seconds: float,
        results_seconds: float,
    ) -> None: ...

    def step_lost(self, *, n_prefill_tokens: int) -> None: ...


class _Sent(NamedTuple):
    """A step whose result has not come back."""

    at: float
    n_prefill_tokens: int


class StepTimer:
    """Times each step. Times are of the monotonic clock, in seconds."""

    def __init__(self, metrics: StepMetrics) -> None:
        self._metrics = metrics
        self._sent: dict[int, _Sent] = {}

    def sent(self, plan: Plan, began: float, now: float) -> None:
        """Note that a step is sent at `now`; its planning began at `began`."""
        for admit in plan.step.admit:
            self._metrics.admitted(admit.n_cached)
        self._sent[plan.step.step] = _Sent(now, plan.n_prefill_tokens)
        self._metrics.step_sent(
            n_prefill_tokens=plan.n_prefill_tokens,
            n_admitted=len(plan.admitted),
            n_decode=plan.n_decodes,
            plan_seconds=now - began,
        )

    def done(self, done: StepDone, received: float) -> None:
        """Note that a result that came at `received` has been delivered by now."""
        sent = self._sent.pop(done.step)
        now = time.monotonic()
        self._metrics.sampled(done.sampled)
        if done.encoded is not None:
            self._metrics.encoded(done.encoded.n, done.encoded.seconds)
        self._metrics.step(
            n_prefill_tokens=sent.n_prefill_tokens,
            seconds=now - sent.at,
            results_seconds=now - received,
            forward_seconds=done.forward_seconds,
            sample_seconds=done.sample_seconds,
        )

    def lost(self) -> None:
        """Count every step in flight as failed."""
        for sent in self._sent.values():
            self._metrics.step_lost(n_prefill_tokens=sent.n_prefill_tokens)
        self._sent.clear()
