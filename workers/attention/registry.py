"""Which attention serves which device."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from workers.attention.cpu import CpuAttention

DEVICES = ("cpu",)
"""Kinds of device that paged attention is built for."""

NAME = "tgi_paged"
"""`attn_implementation` of a model that is to use paged attention."""


def register(
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Put paged attention for this shape of model under NAME, and say what was given up for it.

    The first call on a machine compiles the kernel, which takes about two seconds. Raises
    ValueError for a device that has no attention here.
    """
    kind = torch.device(device).type
    if kind not in DEVICES:
        raise ValueError(
            f"paged attention is built for the device {', '.join(DEVICES)}, not for {kind}"
        )
    attention = CpuAttention(n_heads, n_kv_heads, head_dim, dtype)
    AttentionInterface.register(NAME, attention)
    return attention.notes
