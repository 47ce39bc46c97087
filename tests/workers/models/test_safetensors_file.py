from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from workers.models.safetensors_file import to_bfloat16, write_bfloat16


def test_rounding_is_that_of_torch() -> None:
    random = np.random.default_rng(0)
    bits = random.integers(0, 2**32, size=100_000, dtype=np.uint32)
    ties = (bits & np.uint32(0xFFFF0000)) | np.uint32(0x8000)
    special = np.array([0.0, -0.0, np.inf, -np.inf, 3.4e38, 1e-45], dtype=np.float32)
    values = np.concatenate([bits.view(np.float32), ties.view(np.float32), special])
    values = values[~np.isnan(values)]

    expected = torch.from_numpy(values).to(torch.bfloat16).view(torch.uint16).numpy()

    np.testing.assert_array_equal(to_bfloat16(values), expected)


def test_not_a_number_stays_so() -> None:
    bits = np.array([0x7FC00000, 0x7F800001, 0x7FFFFFFF, 0xFFFFFFFF], dtype=np.uint32)

    rounded = to_bfloat16(bits.view(np.float32)).astype(np.uint32) << 16

    assert np.isnan(rounded.view(np.float32)).all()


def test_the_file_is_read_by_the_safetensors_library(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array([1.5], dtype=np.float32),
    }

    write_bfloat16(path, {name: t.shape for name, t in tensors.items()}, iter(tensors.items()))

    with safe_open(path, framework="pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == {"a", "b"}
        for name, values in tensors.items():
            read = file.get_tensor(name)
            assert read.dtype == torch.bfloat16
            assert torch.equal(read.float(), torch.from_numpy(values))


@pytest.mark.parametrize("shapes", [{"a": (3,)}, {"b": (2,)}, {}, {"a": (2,), "b": (1,)}])
def test_tensors_other_than_announced_are_refused(
    tmp_path: Path, shapes: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(ValueError, match=r"tensor [ab] "):
        write_bfloat16(
            tmp_path / "a.safetensors", shapes, iter([("a", np.zeros(2, dtype=np.float32))])
        )
