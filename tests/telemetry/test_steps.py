from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import pytest

from tgi_async.scheduler.plan import Plan
from tgi_async.telemetry.steps import StepTimer
from tgi_async.wire.messages import Admit, Encoded, Run, Sampled, Sampling, Step, StepDone


class Reported:
    """Metrics that remember their calls."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []

    def admitted(self, n_cached: int) -> None:
        self.calls.append(("admitted", n_cached))

    def sampled(self, found: Sequence[Sampled]) -> None:
        self.calls.append(("sampled", found))

    def encoded(self, n: int, seconds: float) -> None:
        self.calls.append(("encoded", (n, seconds)))

    def step_sent(self, **given: Any) -> None:
        self.calls.append(("sent", given))

    def step(self, **given: Any) -> None:
        self.calls.append(("done", given))

    def step_lost(self, **given: Any) -> None:
        self.calls.append(("lost", given))


def plan(number: int, n_prefill: int, *admits: Admit) -> Plan:
    return Plan(Step(number, [], list(admits), [], [Run(0, 1)]), [], n_prefill, 1)


def test_a_step_is_counted_when_it_is_sent() -> None:
    reported = Reported()
    admit = Admit(0, [1, 2], 2, 8, [0], Sampling())
    StepTimer(reported).sent(plan(1, 5, admit), began=1.0, now=1.25)
    expected = {"n_prefill_tokens": 5, "n_admitted": 0, "n_decode": 1, "plan_seconds": 0.25}
    assert reported.calls == [("admitted", 8), ("sent", expected)]


def test_a_step_is_timed_from_being_sent_to_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    reported = Reported()
    steps = StepTimer(reported)
    steps.sent(plan(1, 5), began=1.0, now=1.0)
    steps.sent(plan(2, 0), began=2.0, now=2.0)
    monkeypatch.setattr(time, "monotonic", lambda: 4.0)
    found = [Sampled(0, [7], n_drafts=2)]
    steps.done(StepDone(1, found, [], [], 0.5, 0.125), received=3.5)
    assert reported.calls[-2] == ("sampled", found)
    assert reported.calls[-1] == (
        "done",
        {
            "n_prefill_tokens": 5,
            "seconds": 3.0,
            "results_seconds": 0.5,
            "forward_seconds": 0.5,
            "sample_seconds": 0.125,
        },
    )


def test_images_that_a_step_encoded_are_counted() -> None:
    reported = Reported()
    steps = StepTimer(reported)
    for number in (1, 2):
        steps.sent(plan(number, 5), began=1.0, now=1.0)
    steps.done(StepDone(1, [], [], [], 0.5, 0.125), received=3.5)
    steps.done(StepDone(2, [], [], [], 0.5, 0.125, encoded=Encoded(3, 0.25)), received=3.5)
    assert [given for what, given in reported.calls if what == "encoded"] == [(3, 0.25)]


def test_what_has_not_come_back_is_lost_once() -> None:
    reported = Reported()
    steps = StepTimer(reported)
    for number in (1, 2, 3):
        steps.sent(plan(number, number), began=0.0, now=0.0)
    steps.done(StepDone(1, [], [], [], 0.0, 0.0), received=0.0)
    for _ in range(2):
        steps.lost()
    lost = [given["n_prefill_tokens"] for what, given in reported.calls if what == "lost"]
    assert lost == [2, 3]
