"""Which attention serves which device."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from workers.attention.cpu import CpuAttention
from workers.attention.cuda import CudaAttention

ATTENTIONS = {"cpu": CpuAttention, "cuda": CudaAttention}
"""By kind of device."""

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

    The first call on a machine compiles the CPU's kernel, which takes about two seconds; those of
    a GPU are compiled when they first run. Raises ValueError for a device that has no attention
    here, and for a shape that its attention does not take.
    """
    kind = torch.device(device).type
    if kind not in ATTENTIONS:
        raise ValueError(
            f"paged attention is built for the devices {', '.join(ATTENTIONS)}, not for {kind}"
        )
    attention = ATTENTIONS[kind](n_heads, n_kv_heads, head_dim, dtype)
    AttentionInterface.register(NAME, attention)
    return attention.notes


def block_size(device: torch.device) -> int:
    """Positions of a page that suit the device's attention."""
    return ATTENTIONS[device.type].BLOCK_SIZE
