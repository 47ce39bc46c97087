from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from workers.models.checkpoint import BrokenCheckpoint, Checkpoint
from workers.models.weight_files import INDEX, SINGLE

TENSORS = {
    "wide": torch.arange(6.0).reshape(2, 3),
    "half": torch.arange(5, dtype=torch.bfloat16),
    "whole": torch.tensor([[1, 2]], dtype=torch.int64),
    "number": torch.tensor(3.0),
    "nothing": torch.empty(0, 4),
}


def write(path: Path, header: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_file_has_the_tensors_that_were_put_in(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE, metadata={"format": "pt"})
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names) == set(TENSORS)
    for name, tensor in TENSORS.items():
        found = checkpoint.tensor(name)
        assert found.dtype == tensor.dtype
        assert torch.equal(found, tensor)


def test_what_was_let_go_is_read_again(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / SINGLE)
    checkpoint = Checkpoint(tmp_path)
    found = checkpoint.tensor("wide")
    checkpoint.release()
    assert torch.equal(found, TENSORS["wide"])


def test_an_index_names_the_files(tmp_path: Path) -> None:
    save_file({"a": TENSORS["wide"]}, tmp_path / "first.safetensors")
    save_file({"b": TENSORS["half"]}, tmp_path / "second.safetensors")
    save_file({"c": TENSORS["half"]}, tmp_path / "unnamed.safetensors")
    names = {"a": "first.safetensors", "b": "second.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names) == {"a", "b"}
    assert torch.equal(checkpoint.tensor("b"), TENSORS["half"])


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({"weight_map": {"a": "here.safetensors", "b": "lost.safetensors"}}, r"missing: \['lost"),
        ({"weights": {}}, "has no weight_map"),
        ([], "is not a JSON object"),
    ],
)
def test_an_index_that_says_what_is_not_so(
    tmp_path: Path, index: dict[str, Any], message: str
) -> None:
    save_file({"a": TENSORS["wide"]}, tmp_path / "here.safetensors")
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(BrokenCheckpoint, match=message):
        Checkpoint(tmp_path)


def test_where_a_tensor_is_the_files_know_better_than_the_index(tmp_path: Path) -> None:
    save_file({"a": TENSORS["wide"]}, tmp_path / "1.safetensors")
    save_file({"b": TENSORS["half"]}, tmp_path / "2.safetensors")
    names = {"a": "2.safetensors", "b": "1.safetensors", "tied": "1.safetensors"}
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": names}))
    checkpoint = Checkpoint(tmp_path)
    assert set(checkpoint.names) == {"a", "b"}
    assert torch.equal(checkpoint.tensor("b"), TENSORS["half"])


@pytest.mark.parametrize("n_left", [0, 8, 30, -1])
def test_a_file_that_was_cut_short_is_named(tmp_path: Path, n_left: int) -> None:
    path = tmp_path / SINGLE
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:n_left])
    with pytest.raises(BrokenCheckpoint, match=rf"{SINGLE} (is cut short|has a damaged)"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]},
        {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]},
        {"dtype": "F32", "data_offsets": [0, 4]},
        [],
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, entry: Any) -> None:
    write(tmp_path / SINGLE, {"a": entry}, b"\0" * 4)
    with pytest.raises(BrokenCheckpoint, match="damaged header"):
        Checkpoint(tmp_path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    with pytest.raises(BrokenCheckpoint, match=f"has no {SINGLE}, and no shards of it"):
        Checkpoint(tmp_path)


def test_numbers_of_a_type_that_is_not_served_are_named(tmp_path: Path) -> None:
    """MLX's, of which the file is whole: downloading it again would not help."""
    entry = {"dtype": "U32", "shape": [1], "data_offsets": [0, 4]}
    write(tmp_path / SINGLE, {"a": entry}, b"\0" * 4)
    with pytest.raises(BrokenCheckpoint, match=r"tensors of type U32, .*\(MLX") as caught:
        Checkpoint(tmp_path)
    assert "again" not in str(caught.value)
