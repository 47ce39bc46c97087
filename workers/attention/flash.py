"""Attention of prefills by flash-attn, or by its copy in torch."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch

from workers.attention.device_batch import Chunks
from workers.attention.packed_prefill import PAGE, PackedPrefill
from workers.attention.triton_paged import TritonAttention


class FlashPrefill(PackedPrefill):
    """Prefill by the package flash-attn."""

    NAME = "flash-attn"
    CAPS = True

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(head_dim, dtype)
        self._attend = _function("flash_attn", "flash_attn_varlen_func")

    @staticmethod
    def refusal() -> str | None:
        """Return why it is not available here, or None."""
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
    """Prefill by torch's `varlen_attn`."""

    NAME = "torch's varlen_attn"
    CAPS = False

    def __init__(self, head_dim: int, dtype: torch.dtype) -> None:
        super().__init__(head_dim, dtype)
        self._attend = _function("torch.nn.attention.varlen", "varlen_attn")

    @staticmethod
    def refusal() -> str | None:
        """Return why it is not available here, or None."""
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


class FlashAttention(TritonAttention):
    """The Triton kernels, with flash-attn's prefill."""

    name = "flash"
    reads_codes = False
    page_size = PAGE
    PREFILL = FlashPrefill


class VarlenAttention(TritonAttention):
    """The Triton kernels, with the prefill of torch's `varlen_attn`."""

    name = "varlen"
    reads_codes = False
    page_size = PAGE
    PREFILL = VarlenPrefill


def _window(window: int) -> tuple[int, int]:
    """Return how many keys a query sees before and after its own; -1 is all."""
    return (window - 1 if window else -1, 0)


def _function(module: str, name: str) -> Callable[..., Any]:
    """Import the function. Raises ImportError, AttributeError."""
    found: Callable[..., Any] = getattr(import_module(module), name)
    return found


def _takes(function: Callable[..., Any], *names: str) -> bool:
    return set(names) <= set(inspect.signature(function).parameters)
