"""Which attention serves which device."""

from __future__ import annotations

import torch
from transformers import AttentionInterface

from workers.attention.cpu import CpuAttention
from workers.attention.cuda import CudaAttention
from workers.attention.paged import PagedAttention

ATTENTIONS = {"cpu": CpuAttention, "cuda": CudaAttention}
"""By kind of device."""

NAME = "tgi_paged"
"""`attn_implementation` of a model that is to use paged attention."""


def _unready(*_: object, **__: object) -> None:
    raise RuntimeError("a model runs before `register` was called for its shape")


# Models are built with this name before their shape is known.
AttentionInterface.register(NAME, _unready)


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
    here.
    """
    kind = torch.device(device).type
    if kind not in ATTENTIONS:
        raise ValueError(
            f"paged attention is built for the devices {', '.join(ATTENTIONS)}, not for {kind}"
        )
    attention = ATTENTIONS[kind](n_heads, n_kv_heads, head_dim, dtype)
    AttentionInterface.register(NAME, attention)
    return attention.notes


def attention() -> PagedAttention:
    """What is under NAME."""
    registered: PagedAttention = AttentionInterface()[NAME]
    return registered


def use(attention: PagedAttention) -> None:
    """Put this one under NAME, which all models share."""
    AttentionInterface.register(NAME, attention)


def block_size(device: torch.device) -> int:
    """Positions of a page that suit the device's attention."""
    return ATTENTIONS[device.type].BLOCK_SIZE
