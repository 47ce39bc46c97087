"""As many drafts as give the most tokens a second, by what steps cost."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_async.wire.messages import StepCost
from tgi_async.wire.step_costs import StepCosts
from workers.speculation import choice
from workers.speculation.choice import worth_verifying

chance = st.floats(0.01, 1.0)


def costs_of(*seconds: float) -> StepCosts:
    return StepCosts([StepCost(n, one) for n, one in enumerate(seconds, 1)])


def falling(conditional: list[float]) -> list[float]:
    return list(itertools.accumulate(conditional, lambda a, b: a * b))


@given(
    st.lists(st.lists(chance, max_size=4).map(falling), min_size=1, max_size=3),
    st.lists(st.floats(0.0, 1.0), min_size=16, max_size=16),
)
def test_without_a_margin_no_other_numbers_give_more_tokens_a_second(
    chances: list[list[float]], increases: list[float]
) -> None:
    costs = costs_of(*itertools.accumulate(increases, initial=1.0))
    n = len(chances)

    def rate(counts: tuple[int, ...]) -> float:
        tokens = n + sum(sum(own[:k]) for own, k in zip(chances, counts, strict=True))
        return tokens / costs.seconds(n + sum(counts))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(choice, "MARGIN", 1.0)
        counts = worth_verifying(chances, costs, n, n)
    best = max(map(rate, itertools.product(*(range(len(own) + 1) for own in chances))))
    assert rate(tuple(counts)) == pytest.approx(best)


def test_all_are_verified_where_positions_cost_nothing() -> None:
    assert worth_verifying([[0.1, 0.01], []], costs_of(1.0, 1.0), 2, 2) == [2, 0]


def test_none_are_where_a_position_costs_as_much_as_a_step() -> None:
    assert worth_verifying([[0.9, 0.8]], costs_of(1.0, 2.0), 1, 1) == [0]


def test_a_step_beside_a_prompt_verifies_what_pays_there() -> None:
    # 100 positions for one token: another one is cheap.
    costs = StepCosts([StepCost(1, 0.01), StepCost(200, 2.0)])
    assert worth_verifying([[0.5, 0.001]], costs, 100, 1) == [1]


def test_a_step_that_samples_nothing_has_no_drafts() -> None:
    assert worth_verifying([], costs_of(1.0, 1.1), 5, 0) == []
