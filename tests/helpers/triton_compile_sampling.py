"""Compiles for a GPU, without one, each kernel that sampling launches: `python -m
tests.helpers.triton_compile_sampling 90 bfloat16 128256` (compute capability, dtype of the logits,
size of the vocabulary); with `keep=FOLDER`, the PTX goes there.

One line of JSON for each kernel, a `Build`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from tests.helpers.triton_compile import standing_in
from workers.sampling import triton_kernels
from workers.sampling.device import DeviceSampling

KERNELS = ("tile_argmax", "totals", "choose")


def main(capability: int, dtype: torch.dtype, vocab_size: int, keep: Path | None) -> None:
    sampling = DeviceSampling(vocab_size, 2, torch.device("cpu"))
    logits = torch.zeros(2, vocab_size, dtype=dtype)
    with standing_in(triton_kernels, KERNELS, capability, keep):
        sampling.sample(logits, torch.zeros(2, sampling.WIDTH, dtype=torch.int32))


if __name__ == "__main__":
    capability, dtype, vocab_size, *more = sys.argv[1:]
    keep = next((Path(word.removeprefix("keep=")) for word in more), None)
    main(int(capability), getattr(torch, dtype), int(vocab_size), keep)
