"""Which rank has what: the parts of all ranks are the whole model, once where they should be."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.loading import pretrained
from tests.helpers.our_layers import tensors_of
from tests.workers.models.test_weights import KINDS, saved
from workers.errors import UnsupportedModel
from workers.models.pretrained import Pretrained
from workers.models.tp_plans import plan_of
from workers.slices import Range, Slices, cut, divide_heads


class Alone:
    """A rank that never meets the others."""

    def __init__(self, rank: int, world_size: int) -> None:
        self.rank, self.world_size = rank, world_size


def part(folder: Path, rank: int, world_size: int) -> Pretrained:
    ranks: Any = Alone(rank, world_size)
    return pretrained(folder, ranks)


def filled(loaded: Pretrained) -> dict[str, torch.Tensor]:
    """Its parameters, by name."""
    loaded.weights.fill(loaded.module)
    buffers = dict(loaded.module.named_buffers())
    found = tensors_of(loaded.module)
    return {name: one for name, one in found.items() if name not in buffers and one.numel()}


def n_copies(shape: torch.Size, parts: list[Slices]) -> Counter[int]:
    """How often each number of a tensor is in a part, and of how many numbers that is so."""
    numbers = torch.arange(shape.numel()).reshape(shape)
    held = torch.cat([cut(numbers, one).flatten() for one in parts])
    return Counter(torch.bincount(held, minlength=shape.numel()).tolist())


@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads"), [(9, 3), (8, 4), (32, 8), (71, 1), (12, 12), (14, 2)]
)
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 5, 8])
def test_heads_are_with_their_keys(n_heads: int, n_kv_heads: int, world_size: int) -> None:
    group = n_heads // n_kv_heads
    parts = [divide_heads(n_heads, n_kv_heads, rank, world_size) for rank in range(world_size)]
    assert [at for queries, _ in parts for at in range(*queries)] == list(range(n_heads))
    for queries, keys in parts:
        assert queries.size > 0
        assert queries.size % keys.size == 0
        share = queries.size // keys.size
        for at in range(queries.size):
            # What attention takes for the key of its at-th query is that query's.
            assert keys.start + at // share == (queries.start + at) // group
    sizes = [keys.size for _, keys in parts]
    assert max(sizes) - min(sizes) <= 1
    if world_size <= n_kv_heads:
        assert sum(sizes) == n_kv_heads


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_every_number_is_with_a_rank(tmp_path: Path, kind: str, world_size: int) -> None:
    folder = saved(tmp_path, kind)
    whole = filled(pretrained(folder))
    parts = [part(folder, rank, world_size).weights.slices for rank in range(world_size)]
    n_spread = 0
    for name, parameter in whole.items():
        copies = n_copies(parameter.shape, [one.get(name, {}) for one in parts])
        if name in parts[0]:
            n_spread += parameter.numel()
            # All but keys and values of heads that several ranks share: there are 2, and 3 ranks.
            assert set(copies) <= ({1, 2} if _of_keys(name) else {1}), name
        else:
            assert set(copies) == {world_size}, name
    assert n_spread > 0.8 * sum(one.numel() for one in whole.values())


def _of_keys(name: str) -> bool:
    return any(one in name for one in ("k_proj", "v_proj", "qkv_proj"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_holds_what_its_slices_say(tmp_path: Path, kind: str) -> None:
    folder = saved(tmp_path, kind)
    whole = filled(pretrained(folder))
    for rank in range(2):
        mine = part(folder, rank, 2)
        for name, parameter in filled(mine).items():
            expected = cut(whole[name], mine.weights.slices.get(name, {}))
            assert torch.equal(parameter, expected), name


def test_what_is_added_once_is_with_one_rank(tmp_path: Path) -> None:
    folder = saved(tmp_path, "opt")
    layers = [part(folder, rank, 2).module.model.decoder.layers[0] for rank in range(2)]
    assert ["bias" in layer.fc2.wanted for layer in layers] == [True, False]
    assert ["bias" in layer.self_attn.out_proj.wanted for layer in layers] == [True, False]
    assert all("bias" in layer.fc1.wanted for layer in layers)


def test_more_ranks_than_heads(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match="has 4 heads, which is the most ranks"):
        part(saved(tmp_path, "llama"), 0, 5)


def test_a_family_that_nobody_has_a_plan_for(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModel, match=r"how gpt2 could be spread.*--num-shard 1"):
        part(saved(tmp_path, "gpt2"), 0, 2)


def test_a_plan_with_parts_that_are_not_built(tmp_path: Path) -> None:
    whole = pretrained(saved(tmp_path, "llama")).module
    whole.config.base_model_tp_plan = {"layers.*.mlp": "teleported"}
    with pytest.raises(UnsupportedModel, match=r"not built \(teleported\)"):
        plan_of(whole)


def test_an_attention_that_norms_all_heads_at_once_is_whole(tmp_path: Path) -> None:
    mine = part(saved(tmp_path, "olmo2"), 1, 2)
    assert mine.sharding is not None
    assert (mine.sharding.n_heads, mine.sharding.n_kv_heads) == (4, 2)
    assert "model.layers.0.self_attn.q_proj.weight" not in mine.weights.slices
    assert mine.weights.slices["model.layers.0.mlp.up_proj.weight"] == {0: [Range(24, 48)]}
