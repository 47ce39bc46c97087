"""Paged attention on a CPU."""

from __future__ import annotations

import torch

from workers.attention.gather import attend_gathered
from workers.attention.kernel import Kernel
from workers.attention.paged import PagedAttention
from workers.native import NativeUnavailable


class CpuAttention(PagedAttention):
    """The C kernel where it can be had, plain torch elsewhere; `notes` says what was given up."""

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        refusal = Kernel.refusal(n_heads, n_kv_heads, head_dim, dtype)
        if not refusal:
            try:
                super().__init__(Kernel())
                return
            except NativeUnavailable as error:
                refusal = str(error)
        note = (
            "attention runs in plain torch, several times slower with many streams, because "
            f"the C kernel is not to be had: {refusal}"
        )
        super().__init__(attend_gathered, [note])
