"""Which attention serves which device."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import AttentionInterface

from workers.attention.cpu import CpuAttention
from workers.attention.cuda import CudaAttention, FlashAttention, VarlenAttention
from workers.attention.paged import PagedAttention

if TYPE_CHECKING:
    from workers.attention.triton_paged import TritonAttention

ATTENTIONS: dict[str, type[CpuAttention | CudaAttention]] = {
    "cpu": CpuAttention,
    "cuda": CudaAttention,
}
"""By kind of device; `choose` puts another one there."""

CHOICES: dict[str, type[CudaAttention]] = {
    "auto": CudaAttention,
    "triton": CudaAttention,
    "flash": FlashAttention,
    "varlen": VarlenAttention,
}
"""Of a GPU, by `--attention`. `auto` has small pages, so that texts share more of the cache, and
needs nothing besides Triton."""

NAME = "tgi_paged"
"""`attn_implementation` of a model that is to use paged attention."""


def _unready(*_: object, **__: object) -> None:
    raise RuntimeError("a model runs before `register` was called for its shape")


# Models are built with this name before their shape is known.
AttentionInterface.register(NAME, _unready)


def choose(name: str, device: torch.device) -> None:
    """Let this one of CHOICES serve the device's kind, in this process.

    Raises ValueError where it cannot be had, saying what is missing.
    """
    if device.type != "cuda":
        if name != "auto":
            raise ValueError(
                f"--attention {name} needs an NVIDIA GPU, and serving is on the CPU. Leave it out"
            )
        return
    chosen = CHOICES[name]
    refusal = chosen.PREFILL.refusal() if chosen.PREFILL else None
    if refusal:
        raise ValueError(
            f"--attention {name} cannot be had: {refusal}. Install it, or leave --attention out"
        )
    ATTENTIONS["cuda"] = chosen


def kernels(
    n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype
) -> tuple[TritonAttention, list[str]]:
    """Those of a GPU; see `CudaAttention.kernels`."""
    chosen = ATTENTIONS["cuda"]
    assert issubclass(chosen, CudaAttention)
    return chosen.kernels(n_heads, n_kv_heads, head_dim, dtype)


def register(
    n_heads: int,
    n_kv_heads: int,
    head_dim: int,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
) -> list[str]:
    """Put paged attention for this shape of model under NAME, and say what was given up for it.

    The first call on a machine compiles the CPU's kernel, which takes some ten seconds; those of
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
