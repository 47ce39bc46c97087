"""How AWQ and GPTQ lay out a layer, for tests: from the descriptions of their formats."""

from __future__ import annotations

import math

import numpy as np
import torch

from tests.workers.quantization.checkpoints import Integers, Rounded, words

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def gptq(weight: Rounded, bits: int, *, v2: bool = False) -> dict[str, torch.Tensor]:
    """qweight along the inputs, qzeros along the outputs; in v1 less 1, as GPTQModel writes it."""
    zeros = words(weight.zeros.T, bits)
    if not v2 and bits == 3:
        zeros = words((weight.zeros.T - 1) % 8, bits)
    elif not v2:
        # From whole words: a zero point of 0 takes from its neighbor.
        ones = sum(1 << at for at in range(0, 32, bits))
        unsigned = zeros.numpy().view(np.uint32).astype(np.int64)
        zeros = torch.from_numpy(((unsigned - ones) % 2**32).astype(np.uint32).view(np.int32))
    return {
        "qweight": words(weight.codes, bits).t().contiguous(),
        "qzeros": zeros,
        "scales": weight.scales.t().contiguous(),
        "g_idx": torch.from_numpy(weight.group.astype(np.int32)),
    }


def awq(weight: Rounded, version: str) -> dict[str, torch.Tensor]:
    """In one of AWQ's layouts, whose 16-bit ones have groups of at least 32 and 64 inputs."""
    n, k = weight.codes.shape
    if version == "gemm":
        return {
            "qweight": words(np.ascontiguousarray(weight.codes.T), 4, AWQ_ORDER),
            "qzeros": words(np.ascontiguousarray(weight.zeros.T), 4, AWQ_ORDER),
            "scales": weight.scales.t().contiguous(),
        }
    n_groups = weight.scales.shape[1]
    size = k // n_groups
    multiple = 8 if size < 32 else 4 if size < 64 else 2 if size < 128 else 1
    padded = math.ceil(math.ceil(n_groups / 8) / multiple) * multiple * 8
    scales = torch.zeros((n, padded), dtype=torch.float16)
    scales[:, :n_groups] = weight.scales
    zeros = np.zeros((n, padded), dtype=np.int64)
    zeros[:, :n_groups] = weight.zeros
    if version == "gemv":
        return {"qweight": words(weight.codes, 4), "qzeros": words(zeros, 4), "scales": scales}
    products = -(scales.float() * torch.from_numpy(zeros)).half()
    name = "scaled_zeros" if version == "llm-awq" else "qzeros"
    return {
        "qweight": _in_blocks(weight.codes),
        name: products.t().contiguous(),
        "scales": scales.t().contiguous(),
    }


def _in_blocks(codes: Integers) -> torch.Tensor:
    """int16 [n / 4, k]: where AutoAWQ's `pack_intweight` puts element [row, column]."""
    n, k = codes.shape
    found = np.zeros((n // 4, k), dtype=np.int64)
    for row in range(n):
        for column in range(k):
            eight, pair, odd = column % 32 // 8, column % 8 // 2, column % 2
            place = 8 * pair + 2 * eight + odd
            place = place // 8 * 8 + place % 2 * 4 + place % 8 // 2
            flat = row % 4 * 64 + column % 64 // 32 * 32 + place
            word, nibble = divmod(flat, 4)
            found[row // 4, column // 64 * 64 + word] |= codes[row, column] << (4 * nibble)
    return torch.from_numpy(found.astype(np.uint16).view(np.int16))
