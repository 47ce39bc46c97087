"""The scheduler's core under any order of events, on pools that are soon full.

Two ways through the same checks: a state machine, which hypothesis shrinks to the few events that
matter, and seeded random walks, which are longer and so get deeper. Both say what they reached.
"""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from property_tests.checked import CheckedCore
from property_tests.model import EOS, VOCABULARY, Violation
from property_tests.walk import CLIENTS, spans_of, walk
from tgi_async.scheduler import suspects
from tgi_async.scheduler.plan import Budget, half
from tgi_async.scheduler.reservations import Capacity
from tgi_async.wire.messages import CachePool

WHAT_IT_IS_ABOUT = (
    "a span beyond the budget",
    "abort in flight",
    "accepted draft",
    "accepted draft under a grammar",
    "abort while waiting",
    "death with a step in flight",
    "draft behind a stop sequence",
    "draft behind the end",
    "drafts are short",
    "drafts behind a step in flight",
    "drafts beside a prefill",
    "drafts beside a scored prompt",
    "dropped token",
    "evicted",
    "evicted before it was submitted",
    "evicted for tokens",
    "eviction",
    "full queue",
    "half of the queue",
    "hit before a span",
    "hit behind a span",
    "hit of generated tokens",
    "jump",
    "jump behind a draft",
    "mask not ready",
    "more rows than there are",
    "preemption",
    "prefill beside decodes",
    "prefix hit",
    "prompt log-probabilities",
    "readmission",
    "refused without a queue",
    "rejected draft",
    "rejected draft under a grammar",
    "rejection",
    "replay",
    "row error",
    "several rows",
    "span",
    "shared block",
    "stop token",
    "too many tokens",
    "wait at the limit",
    "wait for a computing prefix",
)
DRAFTS = (0, 0, 1, 3)
"""How many a worker verifies in a step, at most."""
TOO_DEEP = {
    "accepted draft under a grammar",
    "evicted for tokens",
    "too many tokens",
    "drafts beside a prefill",
    "draft behind a stop sequence",
    "drafts beside a scored prompt",
    "draft behind the end",
    "hit of generated tokens",
    "jump behind a draft",
    "more rows than there are",
    "preemption",
    "rejected draft under a grammar",
}
"""What so few events reach by luck only; the walks get there."""


def capacities() -> st.SearchStrategy[Capacity]:
    """A queue that is soon full, or one that never is."""
    small = st.builds(
        Capacity, st.integers(1, 4), st.sampled_from((0, 1, 3, 6)), st.sampled_from((30, 60, 2**62))
    )
    return st.just(Capacity()) | small


@st.composite
def budgets(draw: st.DrawFn) -> Budget:
    block_size = draw(st.integers(1, 4))
    n_blocks = draw(st.integers(3, 10))
    max_batch_prefill_tokens = draw(st.integers(1, 9))
    chunk = st.integers(1, half(max_batch_prefill_tokens))
    return Budget(
        pools=[CachePool(n_blocks)],
        block_size=block_size,
        max_rows=draw(st.integers(1, 5)),
        max_batch_prefill_tokens=max_batch_prefill_tokens,
        max_total_tokens=draw(st.integers(3, n_blocks * block_size + 2)),
        overcommit=draw(st.sampled_from((1.0, 1.5, 4.0))),
        lookahead=draw(st.integers(0, 1)),
        max_drafts=draw(st.sampled_from(sorted(set(DRAFTS)))),
        max_logits=draw(st.sampled_from((1, 3, 512))),
        capacity=draw(capacities()),
        beside_decodes=draw(st.lists(chunk, max_size=3)),
    )


class CoreMachine(RuleBasedStateMachine):
    reached: ClassVar[Counter[str]] = Counter()

    @initialize(
        budget=budgets(), stem=st.lists(st.integers(0, VOCABULARY - 1), min_size=8, max_size=20)
    )
    def start(self, budget: Budget, stem: list[int]) -> None:
        self.checked = CheckedCore(budget)
        self.stem = stem

    @rule(
        client=st.sampled_from(CLIENTS),
        shared=st.integers(0, 20),
        tail=st.lists(st.integers(0, VOCABULARY - 1), max_size=4),
        n=st.integers(1, 12),
        stops=st.booleans(),
        prompt_logprobs=st.sampled_from((False, False, False, True)),
        grammar=st.sampled_from(("", "any")),
        stop_sequence=st.booleans(),
        fits=st.sampled_from((True, True, True, False)),
        spans=st.sampled_from((None, None, (2, 3), (0, 4), (5, 9))),
    )
    def submit(
        self,
        client: str,
        shared: int,
        tail: list[int],
        n: int,
        stops: bool,
        prompt_logprobs: bool,
        grammar: str,
        stop_sequence: bool,
        fits: bool,
        spans: tuple[int, int] | None,
    ) -> None:
        prompt = self.stem[:shared] + tail
        if fits:
            prompt = prompt[: max(1, self.checked.budget.max_total_tokens - n)]
        self.checked.submit(
            client,
            prompt,
            n,
            stop_ids=frozenset((EOS,)) if stops else frozenset(),
            prompt_logprobs=prompt_logprobs,
            prompt_top_n_tokens=n % 2 if prompt_logprobs else 0,
            grammar=grammar,
            stops=stop_sequence,
            spans=spans_of(prompt, spans),
        )

    @rule(
        clients=st.lists(st.sampled_from(CLIENTS), min_size=2, max_size=4),
        shared=st.integers(4, 20),
        n=st.integers(1, 6),
    )
    def submit_a_crowd(self, clients: list[str], shared: int, n: int) -> None:
        """The same prefix, at once."""
        for token, client in enumerate(clients):
            self.checked.submit(client, [*self.stem[:shared], token], n)

    @rule(client=st.sampled_from(CLIENTS), n_rows=st.integers(1, 3), n_bytes=st.integers(1, 20))
    def book(self, client: str, n_rows: int, n_bytes: int) -> None:
        self.checked.book(client, n_rows, n_bytes)

    @precondition(lambda self: self.checked.budget.capacity.max_rows < 20)
    @rule(newcomer=st.sampled_from(CLIENTS), n_rows=st.integers(1, 2), booked=st.booleans())
    def fill_the_queue(self, newcomer: str, n_rows: int, booked: bool) -> None:
        """One client takes what there is, and then another comes."""
        for _ in range(self.checked.budget.capacity.max_rows):
            if booked:
                self.checked.book("eve", 1, 2)
            else:
                self.checked.submit("eve", [1], 2)
        self.checked.submit(newcomer, [1], 2, n_rows)

    @precondition(lambda self: self.checked.booked)
    @rule(which=st.integers(0, 4), shared=st.integers(0, 20), n=st.integers(1, 6))
    def submit_booked(self, which: int, shared: int, n: int) -> None:
        booking = self.checked.booked[which % len(self.checked.booked)]
        self.checked.submit_booked(booking, self.stem[:shared], n)

    @precondition(lambda self: self.checked.booked)
    @rule(which=st.integers(0, 4))
    def give_up(self, which: int) -> None:
        self.checked.give_up(self.checked.booked[which % len(self.checked.booked)])

    @rule()
    def plan(self) -> None:
        self.checked.plan()

    @rule()
    def complete(self) -> None:
        self.checked.complete()

    @rule(n=st.integers(1, 8), not_ready=st.booleans())
    def go_on(self, n: int, not_ready: bool) -> None:
        """A busy engine: plans as far ahead as it may, then takes a result. Grammars may lag."""
        for _ in range(n):
            while self.checked.plan():
                pass
            rows = range(self.checked.budget.max_rows)
            self.checked.complete(not_ready=frozenset(rows if not_ready else ()))

    @precondition(lambda self: self.checked.sent)
    @rule(which=st.integers(0, 4))
    def complete_with_an_error(self, which: int) -> None:
        rows = sorted(self.checked.sent[0].cases)
        self.checked.complete(frozenset((rows[which % len(rows)],)))

    @precondition(lambda self: self.checked.live)
    @rule(which=st.integers(0, 7))
    def finish(self, which: int) -> None:
        live = list(self.checked.live.values())
        self.checked.finish(live[which % len(live)])

    @precondition(lambda self: self.checked.sent)
    @rule(which=st.integers(0, 4))
    def finish_in_flight(self, which: int) -> None:
        computing = [case for case in self.checked.live.values() if case.n_in_flight]
        if computing:
            self.checked.finish(computing[which % len(computing)])

    @precondition(lambda self: self.checked.live)
    @rule()
    def die(self) -> None:
        self.checked.die()

    def teardown(self) -> None:
        if hasattr(self, "checked"):
            self.checked.drain()
            CoreMachine.reached += self.checked.reached


def test_every_invariant_holds_after_every_event() -> None:
    CoreMachine.reached.clear()
    run_state_machine_as_test(
        CoreMachine, settings=settings(max_examples=3 * settings().max_examples)
    )
    missed = {name for name in WHAT_IT_IS_ABOUT if not CoreMachine.reached[name]}
    assert missed <= TOO_DEEP, CoreMachine.reached


def test_random_walks_hold_and_reach_what_they_are_about() -> None:
    reached: Counter[str] = Counter()
    for seed in range(1000, 1110):
        reached += walk(seed, n_events=500, max_drafts=DRAFTS[seed // 4 % len(DRAFTS)])
    missed = [name for name in WHAT_IT_IS_ABOUT if reached[name] < 10]
    assert not missed, reached


def test_requests_that_are_held_after_deaths_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if three deaths had come before each one, and those later were of other causes.
    monkeypatch.setattr(suspects, "N_SHORT", 1)
    monkeypatch.setattr(suspects, "SHORT_LIFE", 6)
    reached: Counter[str] = Counter()
    for seed in range(5000, 5060):
        reached += walk(seed, n_events=300, max_drafts=seed % 3, deaths=0.03)
    assert min(reached["held after a death"], reached["released"]) >= 10, reached
    assert reached["culprit of deaths"] >= 10, reached


TOGETHER = (
    "accepted draft under a grammar",
    "rejected draft under a grammar",
    "drafts behind a step in flight",
    "preemption",
    "replay",
)


def test_drafts_hold_beside_grammars_preemptions_and_deaths_one_step_ahead() -> None:
    n_together = 0
    for seed in range(2000, 2060):
        reached = walk(seed, n_events=1000, max_drafts=3, lookahead=1, deaths=0.01)
        n_together += all(reached[name] for name in TOGETHER)
    # All of it in the same walks, not in different ones.
    assert n_together >= 5


@pytest.mark.full
@pytest.mark.timeout(7200)
def test_many_random_walks_hold() -> None:
    for seed in range(100_000, 104_000):
        try:
            walk(seed, n_events=1000, max_drafts=DRAFTS[seed // 4 % len(DRAFTS)])
        except Violation as violation:
            violation.add_note(f"seed {seed}")
            raise
