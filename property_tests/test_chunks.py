"""Chunks beside decodes keep the latency that is asked for, or else the rate of prompts."""

from __future__ import annotations

from hypothesis import event, given
from hypothesis import strategies as st

from tgi_async.scheduler.chunks import LEAST_RATE, chunks_beside_decodes
from tgi_async.wire.messages import StepCost
from tgi_async.wire.step_costs import StepCosts

NEARLY = 1 + 1e-9


@st.composite
def measurements(draw: st.DrawFn) -> list[StepCost]:
    """Costs as they are measured: chance and all."""
    sizes = draw(st.lists(st.integers(1, 5000), min_size=2, max_size=8, unique=True))
    seconds = st.floats(0.0, 10.0, allow_subnormal=False)
    return [StepCost(n, draw(seconds)) for n in sorted(sizes)]


@st.composite
def likely_measurements(draw: st.DrawFn) -> list[StepCost]:
    """A time for the weights, and one for each position."""
    fixed, a_token = draw(st.floats(1e-4, 1.0)), draw(st.floats(1e-6, 1e-2))
    return [StepCost(n, fixed + n * a_token) for n in (16, 64, 256)]


@given(
    costs=measurements() | likely_measurements(),
    target=st.floats(1e-3, 5.0),
    largest=st.integers(1, 5000),
    block_size=st.sampled_from((1, 4, 16, 256)),
    max_rows=st.integers(1, 40),
)
def test_a_chunk_keeps_the_target_or_the_rate(
    costs: list[StepCost], target: float, largest: int, block_size: int, max_rows: int
) -> None:
    found = chunks_beside_decodes(costs, target, largest, block_size, max_rows)

    assert len(found) == max_rows
    seconds = StepCosts(costs).seconds
    unit = next(n for n in range(block_size, 10_000, block_size) if n >= 16 and n * 64 >= largest)
    for n_decodes, chunk in enumerate(found, 1):
        took, at_most = seconds(chunk + n_decodes), seconds(largest + n_decodes)
        assert chunk == largest or (chunk % unit == 0 and 1 <= chunk < largest)
        # chunk / took >= LEAST_RATE * largest / at_most
        assert chunk * at_most * NEARLY >= LEAST_RATE * largest * took - 1e-6
        if took > target:
            event("too slow")
            smaller = (chunk - 1) // unit * unit
            if smaller:
                slower = seconds(smaller + n_decodes)
                assert smaller * at_most <= LEAST_RATE * largest * slower * NEARLY + 1e-6
        elif chunk < largest:
            event("in time")
            larger = min(chunk + unit, largest)
            assert seconds(larger + n_decodes) > target
