"""Attention of prefills by external kernels, instead of the Triton kernel.

They read our pools as they are, through strides: of keys, values and queries only the last
dimension has to be contiguous. A page has to be a multiple of 256 positions. Decodes, and the
writing of keys and values, stay with the Triton kernels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from workers.attention.device_batch import Chunks

PAGE = 256
"""The page size must be a multiple of this, in positions."""
MOST_HEAD_DIM = 256


class PackedPrefill(ABC):
    """Attention of all chunks of a forward pass at once, plain or with a window."""

    NAME: str
    """Its name in messages."""
    CAPS: bool
    """Whether it supports a softcap."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        """Raise ValueError for layers that the kernels do not support."""
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"it takes bfloat16 and float16, not {dtype}")
        if head_dim % 8 or head_dim > MOST_HEAD_DIM:
            raise ValueError(
                f"it takes head dims up to {MOST_HEAD_DIM} in steps of 8, not {head_dim}"
            )

    @staticmethod
    @abstractmethod
    def refusal() -> str | None:
        """Return why it is not available here, or None."""

    @abstractmethod
    def __call__(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        chunks: Chunks,
        scale: float,
        window: int,
        softcap: float,
    ) -> torch.Tensor:
        """Attend with the query [n_tokens, n_heads, head_dim] of the chunks, over the pools of a
        layer, in which their keys and values are already. Returns the same shape."""
