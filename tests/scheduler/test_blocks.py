from __future__ import annotations

import pytest

from tgi_async.scheduler.blocks import BlockManager, BlockTable, Key, keys_of
from tgi_async.wire.messages import CachePool

ONE, TWO, THREE = keys_of([1, 2, 3, 4, 5, 6], 2)


def computed(blocks: BlockManager, *keys: Key) -> BlockTable:
    """A table whose blocks hold these tokens, as the first to have them."""
    table = blocks.open([], list(keys))
    blocks.grow(table, len(keys))
    table.n_computed = len(keys) * blocks.block_size
    blocks.commit(table, list(keys))
    return table


@pytest.mark.parametrize(("n_blocks", "block_size"), [(0, 1), (1, 0), (-1, 4)])
def test_a_pool_has_at_least_a_block_of_a_token(n_blocks: int, block_size: int) -> None:
    with pytest.raises(ValueError, match="at least one block of one token"):
        BlockManager([CachePool(n_blocks)], block_size)


def test_blocks_are_managed_for_one_cache_group() -> None:
    for pools in ([], [CachePool(4), CachePool(4)]):
        with pytest.raises(ValueError, match=f"one cache group, and the model has {len(pools)}"):
            BlockManager(pools, 2)


def test_granted_blocks_are_distinct_and_used() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = blocks.open([], [])
    assert sorted(blocks.grow(table, 3)) == sorted(set(table.blocks))
    assert (blocks.n_used, blocks.n_free, blocks.n_cached) == (3, 1, 0)


def test_a_closed_table_gives_its_blocks_back() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = blocks.open([], [])
    blocks.grow(table, 3)
    blocks.close(table)
    assert (blocks.n_used, blocks.n_free) == (0, 4)


def test_closing_twice_frees_once() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = computed(blocks, ONE)
    blocks.close(table)
    blocks.close(table)
    assert (blocks.n_free, blocks.n_cached) == (3, 1)


def test_computed_blocks_are_hit_by_a_table_that_is_open_at_the_same_time() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    first = computed(blocks, ONE, TWO)
    match = blocks.match([ONE, TWO, THREE])
    second = blocks.open(match.hits, [ONE, TWO, THREE])
    assert second.blocks == first.blocks
    assert second.n_computed == 4
    assert [blocks.references(block) for block in first.blocks] == [2, 2]


def test_a_hit_outlives_the_table_that_computed_it() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = computed(blocks, ONE, TWO)
    held = list(table.blocks)
    blocks.close(table)
    assert blocks.n_cached == 2
    assert blocks.open(blocks.match([ONE, TWO]).hits, [ONE, TWO]).blocks == held
    assert blocks.n_cached == 0


def test_a_hit_needs_the_same_tokens_behind_the_same_parent() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    computed(blocks, ONE, TWO)
    assert blocks.match([TWO]).hits == []
    assert len(blocks.match([ONE, THREE]).hits) == 1


def test_what_is_being_computed_is_announced_but_no_hit() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = blocks.open([], [ONE, TWO])
    blocks.grow(table, 2)
    match = blocks.match([ONE, TWO])
    assert match.hits == []
    assert match.computing is not None
    assert match.computing.owner is table


def test_half_of_what_was_announced_can_be_hit_when_half_is_computed() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = blocks.open([], [ONE, TWO])
    blocks.grow(table, 2)
    table.n_computed = 3
    blocks.commit(table, [ONE, TWO])
    match = blocks.match([ONE, TWO])
    assert [node.block for node in match.hits] == table.blocks[:1]
    assert match.computing is not None


def test_who_waits_for_an_announced_block_hears_that_it_was_given_up() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = blocks.open([], [ONE])
    awaited = blocks.match([ONE]).computing
    assert awaited is not None
    blocks.close(table)
    assert awaited.owner is None
    assert blocks.match([ONE]).computing is None


def test_of_two_copies_of_a_content_one_is_cached_and_one_is_freed() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    first, second = blocks.open([], []), blocks.open([], [])
    for table in (first, second):
        blocks.grow(table, 1)
        table.n_computed = 2
        blocks.commit(table, [ONE])
    blocks.close(second)
    assert (blocks.n_cached, blocks.n_free) == (0, 3)
    blocks.close(first)
    assert (blocks.n_cached, blocks.n_free) == (1, 3)


def test_the_least_recently_used_is_evicted_first() -> None:
    blocks = BlockManager([CachePool(2)], 2)
    old, new = computed(blocks, ONE), computed(blocks, TWO)
    blocks.close(old)
    blocks.close(new)
    blocks.grow(blocks.open([], []), 1)
    assert blocks.match([ONE]).hits == []
    assert len(blocks.match([TWO]).hits) == 1


def test_a_hit_makes_content_recent_again() -> None:
    blocks = BlockManager([CachePool(2)], 2)
    for key in (ONE, TWO):
        blocks.close(computed(blocks, key))
    blocks.close(blocks.open(blocks.match([ONE]).hits, [ONE]))
    blocks.grow(blocks.open([], []), 1)
    assert len(blocks.match([ONE]).hits) == 1
    assert blocks.match([TWO]).hits == []


def test_the_deepest_block_of_a_text_is_evicted_before_its_prefix() -> None:
    blocks = BlockManager([CachePool(3)], 2)
    blocks.close(computed(blocks, ONE, TWO, THREE))
    blocks.grow(blocks.open([], []), 1)
    assert len(blocks.match([ONE, TWO, THREE]).hits) == 2


def test_a_free_block_is_taken_before_anything_is_evicted() -> None:
    blocks = BlockManager([CachePool(2)], 2)
    blocks.close(computed(blocks, ONE))
    blocks.grow(blocks.open([], []), 1)
    assert len(blocks.match([ONE]).hits) == 1


def test_what_hung_under_an_evicted_block_is_not_reached_through_a_new_one() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    # `second` computes its own copy of ONE, and is the first to have TWO behind it.
    first, second = computed(blocks, ONE), blocks.open([], [])
    blocks.grow(second, 2)
    second.n_computed = 4
    blocks.commit(second, [ONE, TWO])
    blocks.close(first)
    filler = blocks.open([], [])
    blocks.grow(filler, 2)
    assert blocks.match([ONE]).hits == []
    blocks.close(filler)
    computed(blocks, ONE)
    assert len(blocks.match([ONE, TWO]).hits) == 1


def test_only_blocks_that_nobody_shares_come_back_when_a_table_closes() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    first = computed(blocks, ONE, TWO)
    second = blocks.open(blocks.match([ONE]).hits, [ONE])
    assert (blocks.n_exclusive(first), blocks.n_exclusive(second)) == (1, 0)


def test_hits_that_nobody_holds_use_up_what_is_available() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    table = computed(blocks, ONE, TWO)
    hits = blocks.match([ONE, TWO]).hits
    assert blocks.n_taken(hits) == 0
    blocks.close(table)
    assert blocks.n_taken(hits) == 2


def test_a_reset_forgets_all_content() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    blocks.close(computed(blocks, ONE))
    computed(blocks, TWO)
    blocks.reset()
    assert (blocks.n_free, blocks.n_cached, blocks.n_used) == (4, 0, 0)
    assert blocks.match([ONE]).hits == blocks.match([TWO]).hits == []


def test_nothing_is_announced_behind_a_block_that_may_be_evicted() -> None:
    blocks = BlockManager([CachePool(4)], 2)
    blocks.close(computed(blocks, ONE))
    # It computes its own copy of ONE, as a request does whose image begins there.
    table = blocks.open([], [ONE, TWO])
    blocks.grow(table, 2)
    assert blocks.match([ONE, TWO]).computing is None
    table.n_computed = 4
    blocks.commit(table, [ONE, TWO])
    assert len(blocks.match([ONE, TWO]).hits) == 2


def test_who_announced_a_block_is_the_one_that_fills_it() -> None:
    blocks = BlockManager([CachePool(6)], 2)
    table = blocks.open([], [ONE, TWO])
    blocks.grow(table, 2)
    # One that takes no hits, and announces nothing, is first. With its block TWO would go.
    other = blocks.open([], [])
    blocks.grow(other, 2)
    other.n_computed = 2
    blocks.commit(other, [ONE])
    blocks.close(other)
    assert blocks.match([ONE]).computing is not None
    table.n_computed = 4
    blocks.commit(table, [ONE, TWO])
    assert len(blocks.match([ONE, TWO]).hits) == 2
