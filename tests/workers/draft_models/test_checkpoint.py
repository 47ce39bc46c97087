from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.workers.draft_models.target import TARGET
from workers.draft_models.checkpoint import DraftCheckpoint
from workers.errors import UnsupportedModel


def test_tensors_may_lie_in_several_files(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    save_file({"b": torch.zeros(3)}, tmp_path / "model-00002-of-00002.safetensors")
    checkpoint = DraftCheckpoint(tmp_path, TARGET)
    assert sorted(checkpoint.names) == ["a", "b"]
    assert torch.equal(checkpoint.take("a", 2), torch.ones(2))
    assert torch.equal(checkpoint.take("b", 3), torch.zeros(3))


def test_a_single_file_counts_more(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "model.safetensors")
    (tmp_path / "training.safetensors").write_bytes(b"something else")
    assert torch.equal(DraftCheckpoint(tmp_path, TARGET).take("a", 2), torch.ones(2))


def test_what_is_taken_is_no_part_of_the_file(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2000)}, tmp_path / "model.safetensors")
    checkpoint = DraftCheckpoint(tmp_path, TARGET)
    taken = checkpoint.take("a", 2000)
    del checkpoint
    gc.collect()
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()
    assert int(taken.sum()) == 2000


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "medusa_lm_head.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(UnsupportedModel, match=r"medusa_lm_head\.safetensors cannot be read: "):
        DraftCheckpoint(tmp_path, TARGET)
