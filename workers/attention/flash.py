"""Attention of prefills by other people's kernels: flash-attn, and the copy of it in torch.

Both read our pools as they are, through strides: of keys, values and queries only the last
dimension has to be contiguous. A page has to be a multiple of 256 positions. Decodes, and the
writing of keys and values, stay with the Triton kernels.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from workers.attention.device_batch import Chunks

PAGE = 256
"""Positions that a page has to be a multiple of."""
MOST_HEAD_DIM = 256


class PackedPrefill(ABC):
    """Attention of all chunks of a forward pass at once, plain or with a window."""

    NAME: str
    """For a person."""
    CAPS: bool
    """Whether it takes a softcap too."""

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        """Raises ValueError for what the kernels do not take of any layer."""
        if dtype not in (torch.bfloat16, torch.float16):
            raise ValueError(f"it takes bfloat16 and float16, not {dtype}")
        if head_dim % 8 or head_dim > MOST_HEAD_DIM:
            raise ValueError(
                f"it takes head dims up to {MOST_HEAD_DIM} in steps of 8, not {head_dim}"
            )

    @staticmethod
    @abstractmethod
    def refusal() -> str | None:
        """Why it cannot be had here, or None."""

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
        """Query [n_tokens, n_heads, head_dim] of the chunks, over the pools of a layer, in which
        their keys and values are already -> the same."""


class FlashPrefill(PackedPrefill):
    """By the package flash-attn."""

    NAME = "flash-attn"
    CAPS = True

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(head_dim, dtype)
        self._attend = _function("flash_attn", "flash_attn_varlen_func")

    @staticmethod
    def refusal() -> str | None:
        """Why it cannot be had here, or None."""
        try:
            attend = _function("flash_attn", "flash_attn_varlen_func")
        except ModuleNotFoundError as error:
            if error.name == "flash_attn":
                return "it needs the package flash-attn, which is not installed"
            return f"the package flash-attn is installed and cannot be imported: {error}"
        except (ImportError, AttributeError) as error:
            return f"the package flash-attn is installed and cannot be used: {error}"
        if not _takes(attend, "block_table", "softcap"):
            return "it needs flash-attn 2.6 or later, and an older one is installed"
        return None

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
        out: torch.Tensor = self._attend(
            query,
            keys.transpose(1, 2),
            values.transpose(1, 2),
            chunks.queries,
            chunks.keys,
            chunks.most_queries,
            chunks.most_keys,
            softmax_scale=scale,
            # Queries are the last positions of their keys.
            causal=True,
            window_size=_window(window),
            softcap=softcap,
            block_table=chunks.tables,
        )
        return out


class VarlenPrefill(PackedPrefill):
    """By torch's `varlen_attn`."""

    NAME = "torch's varlen_attn"
    CAPS = False

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(head_dim, dtype)
        self._attend = _function("torch.nn.attention.varlen", "varlen_attn")

    @staticmethod
    def refusal() -> str | None:
        """Why it cannot be had here, or None."""
        try:
            attend = _function("torch.nn.attention.varlen", "varlen_attn")
        except (ImportError, AttributeError):
            attend = None
        if attend is None or not _takes(attend, "block_table", "seqused_k", "enable_gqa"):
            return (
                "it needs a torch whose varlen_attn takes a block table, such as 2.13, and "
                f"{torch.__version__} is installed"
            )
        return None

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
        out: torch.Tensor = self._attend(
            query,
            keys.transpose(1, 2),
            values.transpose(1, 2),
            chunks.queries,
            chunks.keys,
            chunks.most_queries,
            chunks.most_keys,
            scale=scale,
            window_size=_window(window),
            enable_gqa=True,
            seqused_k=chunks.lengths,
            block_table=chunks.tables,
            # How a context is added up must not depend on the longest one of the batch.
            num_splits=1,
        )
        return out


def _window(window: int) -> tuple[int, int]:
    """How many keys a query sees before and behind its own; -1 is all."""
    return (window - 1 if window else -1, 0)


def _function(module: str, name: str) -> Callable[..., Any]:
    """Raises ImportError, AttributeError."""
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _takes(function: Callable[..., Any], *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)
