from __future__ import annotations

from tgi_async.scheduler.chunks import chunks_beside_decodes
from tgi_async.scheduler.plan import Budget
from tgi_async.wire.messages import CachePool, StepCost


def costs_of(fixed: float, a_token: float, *sizes: int) -> list[StepCost]:
    """Costs of a model that takes so many milliseconds for its weights, and for each position."""
    return [StepCost(n, (fixed + n * a_token) / 1e3) for n in sizes or (16, 256)]


def chunks(costs: list[StepCost], target: float, *, largest: int = 256, rows: int = 4) -> list[int]:
    return chunks_beside_decodes(costs, target / 1e3, largest, 16, rows)


def test_a_step_that_is_quick_enough_has_the_largest_chunk() -> None:
    assert chunks(costs_of(7, 0.3), 150) == [256] * 4


def test_a_chunk_is_the_largest_with_which_the_step_is_in_time() -> None:
    # 128 tokens and 15 decodes take 153 ms.
    found = chunks(costs_of(10, 1), 150, rows=15)
    assert found[:11] == [128] * 11
    assert found[12:] == [112] * 3


def test_prompts_keep_a_share_of_their_rate_though_steps_take_longer_than_asked_for() -> None:
    # 256 tokens and a decode take 614 ms, 417 tokens a second, and 85 % of that are 354. Chunks of
    # 112 have 344, and those of 128 have 358.
    assert chunks(costs_of(100, 2), 150)[0] == 128
    # The more decodes there are, the more do prompts lose in a chunk of the same size.
    assert chunks(costs_of(100, 2), 150, rows=64)[63] == 176


def test_chunks_are_whole_blocks_of_which_not_too_many_sizes_are_tried() -> None:
    costs = costs_of(0, 0.02, 16, 8192)
    assert chunks_beside_decodes(costs, 0.02, 8192, 256, 1) == [768]
    assert chunks_beside_decodes(costs, 0.02, 8192, 16, 1) == [896]
    assert chunks_beside_decodes(costs, 0.0021, 100, 5, 1) == [100]
    assert chunks_beside_decodes(costs, 0.0020, 100, 5, 1) == [80]


def test_a_budget_below_a_block_stays_as_it_is() -> None:
    assert chunks(costs_of(100, 2), 1, largest=1, rows=2) == [1, 1]
    assert chunks(costs_of(100, 2), 1, largest=7, rows=2) == [7, 7]


def test_nothing_follows_from_costs_that_are_not_known() -> None:
    assert chunks([], 150) == chunks([StepCost(16, 1.0)], 150) == []


def test_a_budget_depends_on_the_decodes_beside_a_prompt() -> None:
    budget = Budget([CachePool(9)], 16, 4, 65, 99)
    assert [budget.prefill_tokens(n) for n in (0, 1, 4)] == [65, 33, 33]
    budget = budget._replace(beside_decodes=[32, 16, 8])
    assert [budget.prefill_tokens(n) for n in (0, 1, 2, 3, 4)] == [65, 32, 16, 8, 8]
