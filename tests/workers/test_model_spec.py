"""What a model says about itself: which layers share blocks of the cache."""

from __future__ import annotations

import pytest
import torch

from workers.attention.cache import CacheGroup, CacheSpec
from workers.attention.kv_codes import UNSCALED
from workers.attention.layer import AttentionSpec, AttentionWindow
from workers.errors import UnsupportedModel
from workers.models.spec import LayerSpec, ModelSpec

WIDE = CacheSpec(2, 32, torch.float32)
NARROW = CacheSpec(2, 16, torch.float32)
ONE = (UNSCALED,)


def spec_of(*caches: CacheSpec) -> ModelSpec:
    windows = [AttentionWindow(window=number) for number in range(len(caches))]
    layers = [
        LayerSpec(AttentionSpec(4, cache.n_kv_heads, 32, 32, 1.0, window), cache)
        for cache, window in zip(caches, windows, strict=True)
    ]
    return ModelSpec(tuple(layers), 97, 128, [1], 64)


def test_layers_that_keep_the_same_share_blocks_however_they_attend() -> None:
    spec = spec_of(WIDE, WIDE, WIDE)
    assert spec.cache_groups == [CacheGroup(WIDE, (0, 1, 2), 3 * ONE)]
    assert spec.cache_group == CacheGroup(WIDE, (0, 1, 2), 3 * ONE)


def test_layers_that_keep_something_else_are_another_group() -> None:
    spec = spec_of(WIDE, NARROW, WIDE)
    assert spec.cache_groups == [
        CacheGroup(WIDE, (0, 2), 2 * ONE),
        CacheGroup(NARROW, (1,), ONE),
    ]
    with pytest.raises(UnsupportedModel, match=r"2 kinds .*2 heads of 16 in torch\.float32, full"):
        _ = spec.cache_group


def test_the_pool_of_a_group_has_what_its_layers_keep() -> None:
    group = CacheGroup(WIDE, (0, 1, 2), 3 * ONE)
    pool = group.pool(5, 4)
    assert [keys.shape for keys in pool.keys] == 3 * [(5, 2, 4, 32)]
    assert {keys.dtype for keys in pool.keys + pool.values} == {torch.float32}
    assert pool.bytes == 5 * group.bytes_per_block(4) == 5 * 3 * 2 * 4 * 2 * 32 * 4
