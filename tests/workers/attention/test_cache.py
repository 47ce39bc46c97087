"""The paged cache's shape and size."""

from __future__ import annotations

import pytest
import torch

from workers.attention.cache import PagedCache


def test_its_bytes_are_those_of_its_pools() -> None:
    cache = PagedCache(3, 5, 16, 2, 64, torch.bfloat16)
    pools = cache.keys + cache.values
    assert [tuple(pool.shape) for pool in pools] == [(5, 2, 16, 64)] * 6
    assert cache.bytes == sum(pool.nbytes for pool in pools)
    assert cache.bytes == 5 * PagedCache.bytes_per_block(3, 16, 2, 64, torch.bfloat16)


@pytest.mark.parametrize("sizes", [(0, 1, 1, 1, 1), (1, 0, 1, 1, 1), (1, 1, 1, -1, 1)])
def test_a_cache_of_nothing_is_refused(sizes: tuple[int, int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        PagedCache(*sizes, dtype=torch.float32)
