"""What is proposed for a step, of what a source, a grammar and the costs say."""

from __future__ import annotations

from typing import ClassVar

import torch

from tests.doubles.foretelling import Foretelling
from tests.helpers.drive import FREE
from tgi_async.wire.messages import StepCost
from tgi_async.wire.step_costs import StepCosts
from workers.speculation.choice import MARGIN
from workers.speculation.source import DraftRows, Proposal
from workers.speculation.speculation import LEARNS_EVERY, Asked, Speculation

TEXT = list(range(10, 170))
DEAR = StepCosts([StepCost(1, 1.0), StepCost(100, 100.0)])


def speculation_of(costs: StepCosts = FREE, prompt: int = 4) -> Speculation:
    made = Speculation(Foretelling([TEXT], wrong_in=0), costs)
    made.admit(0, TEXT[:prompt], prompt, "")
    return made


def test_drafts_are_the_sources_up_to_the_limit() -> None:
    assert speculation_of().propose([Asked(0, 3)], 1, 1) == {0: TEXT[4:7]}


def test_a_row_without_a_guess_is_left_out() -> None:
    speculation = speculation_of()
    speculation.observe(0, [1])
    assert speculation.propose([Asked(0, 3)], 1, 1) == {}


def test_none_are_verified_where_they_do_not_pay() -> None:
    assert speculation_of(DEAR).propose([Asked(0, 3)], 1, 1) == {}


def test_what_was_not_verified_is_learnt_from() -> None:
    # At first drafts are not thought right often enough to pay.
    dear = 1 + 0.92 / MARGIN
    speculation = speculation_of(StepCosts([StepCost(1, 1.0), StepCost(2, dear), StepCost(9, 9.0)]))
    n = 4
    while n < 150 and not speculation.propose([Asked(0, 3)], 1, 1):
        speculation.observe(0, TEXT[n : n + 1])
        n += 1
    assert 4 + LEARNS_EVERY <= n < 100


def test_a_grammar_cuts_drafts() -> None:
    speculation = speculation_of()
    assert speculation.propose([Asked(0, 3, (), lambda drafts: 2)], 1, 1) == {0: TEXT[4:6]}
    assert speculation.propose([Asked(0, 3, (), lambda drafts: 0)], 1, 1) == {}


def test_what_a_grammar_forces_needs_no_source() -> None:
    speculation = speculation_of(DEAR)
    assert speculation.propose([Asked(0, 2, [1, 2, 3])], 1, 1) == {}
    assert speculation_of().propose([Asked(0, 2, [1, 2, 3])], 1, 1) == {0: [1, 2]}


class ByHidden:
    """A source that drafts the number in the hidden state."""

    method: ClassVar[str] = "hidden"
    wants_hidden: ClassVar[bool] = True

    def admit(self, row: int, tokens: object, n_prompt: int, tenant: str) -> None: ...

    def observe(self, row: int, tokens: object) -> None: ...

    def release(self, row: int) -> None: ...

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        assert wanted.hidden is not None
        return [Proposal([int(one)]) for one in wanted.hidden[:, 0]]


def test_a_model_drafts_from_the_state_where_the_last_token_was_sampled() -> None:
    speculation = Speculation(ByHidden(), FREE)
    for row in range(2):
        speculation.admit(row, [1], 1, "")
    asked = [Asked(0, 1), Asked(1, 1)]
    assert speculation.propose(asked, 2, 2) == {}
    speculation.observe_hidden([1, 0], torch.tensor([[7.0], [8.0]]))
    assert speculation.propose(asked, 2, 2) == {0: [8], 1: [7]}
    speculation.admit(1, [1], 1, "")
    assert speculation.propose(asked, 2, 2) == {0: [8]}
