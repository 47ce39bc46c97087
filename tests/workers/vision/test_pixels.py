"""The arrays of an image, read from a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tgi_async.wire.messages import Image, PixelArray
from workers.vision.pixels import read


def image(path: Path, *arrays: PixelArray) -> Image:
    return Image(bytes(16), 0, 1, str(path), list(arrays))


def test_arrays_are_what_was_written_and_outlive_their_file(tmp_path: Path) -> None:
    file = tmp_path / "image"
    pixels = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    grid = np.array([[1, 2, 3]], np.int64)
    file.write_bytes(pixels.tobytes() + bytes(32) + grid.tobytes())
    given = image(
        file,
        PixelArray("pixel_values", "float32", [2, 3, 4], 0),
        PixelArray("image_grid_thw", "int64", [1, 3], 128),
    )
    found = read(given)
    file.unlink()
    assert found["pixel_values"].dtype is torch.float32
    assert torch.equal(found["pixel_values"], torch.from_numpy(pixels))
    assert torch.equal(found["image_grid_thw"], torch.from_numpy(grid))


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (PixelArray("p", "float32", [5], 0), "at bytes 0 to 20 of a file of 16"),
        (PixelArray("p", "float32", [2**30, 2**30], 0), "of a file of 16"),
        (PixelArray("p", "float32", [1], 2), "at bytes 2 to 6"),
        (PixelArray("p", "object", [1], 0), "is of object, allowed are"),
    ],
)
def test_what_a_file_does_not_have_is_refused(tmp_path: Path, array: PixelArray, said: str) -> None:
    (tmp_path / "image").write_bytes(bytes(16))
    with pytest.raises(ValueError, match=said):
        read(image(tmp_path / "image", array))


def test_a_file_that_is_gone_or_empty_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("gone", "empty"):
        with pytest.raises(ValueError, match="cannot be read"):
            read(image(tmp_path / name, PixelArray("p", "float32", [1], 0)))
