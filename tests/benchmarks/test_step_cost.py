"""What the core does for a row of a step, in counts that every machine agrees on."""

from __future__ import annotations

import pytest

from benchmarks.step_cost import BLOCK_SIZE, Counts, count_decodes


@pytest.fixture(scope="module")
def counts() -> Counts:
    return count_decodes(64, 64, 4 * BLOCK_SIZE)


def test_planning_a_row_takes_few_calls(counts: Counts) -> None:
    assert counts.plan_calls < 6.5


def test_completing_a_row_takes_few_calls(counts: Counts) -> None:
    assert counts.complete_calls < 6.2


@pytest.fixture(scope="module")
def drafting() -> Counts:
    return count_decodes(64, 64, 4 * BLOCK_SIZE, max_drafts=8)


def test_planning_a_row_with_drafts_takes_few_calls_more(drafting: Counts, counts: Counts) -> None:
    assert drafting.plan_calls < counts.plan_calls + 4


def test_completing_a_row_whose_drafts_were_refused_takes_few_calls_more(
    drafting: Counts, counts: Counts
) -> None:
    assert drafting.complete_calls < counts.complete_calls + 4


def test_a_row_leaves_little_behind(counts: Counts) -> None:
    # A token's number, and the keys and the block numbers of each block.
    assert counts.blocks < 1.5


@pytest.mark.parametrize("longer", [2, 16])
def test_a_long_text_costs_no_more_than_a_short_one(counts: Counts, longer: int) -> None:
    of_longer = count_decodes(64, 64 * longer, 4 * BLOCK_SIZE)
    assert of_longer.plan_calls == pytest.approx(counts.plan_calls, rel=0.01)
    assert of_longer.complete_calls == pytest.approx(counts.complete_calls, rel=0.01)
