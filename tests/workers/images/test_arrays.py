"""The file of an image's arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from workers.images.arrays import ALIGNMENT, BLOCK, write


def test_arrays_are_read_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "arrays"
    file.write_bytes(b"longer than what is written" * 100_000)
    written = {
        "pixels": np.arange(105, dtype=np.float32).reshape(1, 3, 5, 7),
        "mask": np.array([[True, False, True]]),
        "sizes": np.array([[-1, 2]]),
    }
    places, n_bytes = write(str(file), written)
    assert n_bytes == file.stat().st_size == 2 * ALIGNMENT + 6 * ALIGNMENT + 16
    assert [place["name"] for place in places] == list(written)
    for place in places:
        assert place["offset"] % ALIGNMENT == 0
        shape = tuple(place["shape"])
        read = np.memmap(file, place["dtype"], "r", place["offset"], shape)
        assert np.array_equal(read, written[place["name"]])
        assert read.dtype == written[place["name"]].dtype


def test_zeros_take_no_memory(tmp_path: Path) -> None:
    file = tmp_path / "arrays"
    tiles = np.zeros((4, BLOCK), np.uint8)
    tiles[1, 5:] = 1
    _, n_bytes = write(str(file), {"tiles": tiles})
    assert n_bytes == file.stat().st_size == tiles.nbytes
    assert BLOCK <= file.stat().st_blocks * 512 < 2 * BLOCK
    assert np.array_equal(np.fromfile(file, np.uint8).reshape(tiles.shape), tiles)
