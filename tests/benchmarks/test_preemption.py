"""What preemption costs, as the benchmark counts it: the same on any machine."""

from __future__ import annotations

import pytest

from benchmarks.preemption import LOADS, measure


@pytest.mark.parametrize("name", ["to the limit", "half of the limit"])
def test_a_full_pool_computes_little_again(name: str) -> None:
    counts = measure(LOADS[name], 600)
    assert 0 < counts.n_preemptions < counts.n_ended / 3
    assert counts.recomputed_a_token < 0.2
    assert counts.emitted_a_step > 18
