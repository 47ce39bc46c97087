"""GGUF files whose lengths, counts and offsets were changed (CVE-2026-7482)."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random

import pytest

from tests.helpers.tiny_gguf import write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models.gguf import GgufModel

HEADER = 20_000
"""Bytes from the beginning that hold lengths, counts, names and offsets."""
HUGE = (2**64 - 1, 2**63 - 1, 2**40, 2**32, 10**6)


def spoiled(random: Random, data: bytes) -> bytes:
    for _ in range(random.choice((1, 1, 2))):
        place = random.randrange(4, min(HEADER, len(data) - 8))
        match random.randrange(4):
            case 0:
                flipped = data[place] ^ (1 << random.randrange(8))
                data = data[:place] + bytes((flipped,)) + data[place + 1 :]
            case 1:
                data = data[:place] + random.choice(HUGE).to_bytes(8, "little") + data[place + 8 :]
            case 2:
                data = data[:place] + b"\xff\xff\xff\xff" + data[place + 4 :]
            case 3:
                data = data[: random.randrange(100, len(data))]
    return data


@pytest.mark.parametrize("n", [15, pytest.param(3000, marks=pytest.mark.full)])
def test_a_spoiled_file_is_refused_or_read(tmp_path: Path, n: int) -> None:
    """What is read is as long as the file says, and comes from the file."""
    whole = write_tiny_gguf(tmp_path / "whole.gguf").path.read_bytes()
    random = Random(1)
    path = tmp_path / "a.gguf"
    n_refused = n_read = 0
    for _ in range(n):
        data = spoiled(random, whole)
        path.write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # numpy's, of nonsense in a tensor
                model = GgufModel(path)
                model.config()
                size = sum(values.nbytes for _, values in model.tensors())
        except ModelUnavailable:
            n_refused += 1
        else:
            n_read += 1
            assert size < 100 * len(whole)
    assert min(n_refused, n_read) > n // 10
