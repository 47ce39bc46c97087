from __future__ import annotations

import pytest

from tgi_async.wire.messages import StepCost
from tgi_async.wire.step_costs import StepCosts


def test_costs_are_linear_between_what_was_measured_and_beyond_it() -> None:
    costs = StepCosts([StepCost(2, 1.0), StepCost(4, 2.0), StepCost(8, 6.0)])
    assert [costs.seconds(n) for n in (1, 2, 3, 4, 5, 8, 9)] == [0.5, 1.0, 1.5, 2.0, 3.0, 6.0, 7.0]


def test_no_step_costs_less_than_a_smaller_one() -> None:
    costs = StepCosts([StepCost(1, 2.0), StepCost(2, 1.0), StepCost(4, 4.0)])
    assert [costs.seconds(n) for n in (1, 2, 3)] == [2.0, 2.0, 3.0]
    assert StepCosts([StepCost(8, 1.0), StepCost(9, 9.0)]).seconds(1) == 0.0


@pytest.mark.parametrize(
    "measured", [[], [StepCost(1, 1.0)], [StepCost(2, 1.0), StepCost(1, 1.0)], [StepCost(1, 1)] * 2]
)
def test_two_ascending_measurements_are_the_least(measured: list[StepCost]) -> None:
    with pytest.raises(ValueError, match="two or more ascending"):
        StepCosts(measured)
