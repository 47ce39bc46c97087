"""Paged attention on a GPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib import util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from workers.attention.flash import PAGE, FlashPrefill, PackedPrefill, VarlenPrefill
from workers.attention.gather import attend_gathered
from workers.attention.paged import Attend, PagedAttention

if TYPE_CHECKING:
    from workers.attention.triton_paged import TritonAttention

LEAST_CAPABILITY = (8, 0)
"""Ampere: what Triton compiles for, and the first with bfloat16."""


class CudaAttention(PagedAttention):
    """The Triton kernels for what they take, plain torch for the rest; `notes` says what for."""

    PREFILL: type[PackedPrefill] | None = None
    """What attends to prefills in the place of the Triton kernels, where it takes them."""

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        def of(n_heads: int) -> tuple[Attend, list[str]]:
            try:
                return self.kernels(n_heads, n_kv_heads, head_dim, dtype)
            except ValueError as error:
                return attend_gathered, [f"attention runs in plain torch, slower: {error}"]

        attends = {}
        attends[n_heads], notes = of(n_heads)

        def attend(query: torch.Tensor, *given: Any, **named: Any) -> torch.Tensor:
            # A layer may have other heads than most.
            n_heads = query.shape[1]
            if n_heads not in attends:
                attends[n_heads], _ = of(n_heads)
            return attends[n_heads](query, *given, **named)

        super().__init__(attend, notes)

    @classmethod
    def kernels(
        cls, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype
    ) -> tuple[TritonAttention, list[str]]:
        """For models that call them by themselves; and what was given up, for a person.

        Raises ValueError for a shape of model that they do not take.
        """
        # Only a torch built for CUDA brings Triton along.
        from workers.attention.triton_paged import TritonAttention

        prefill, notes = None, []
        if cls.PREFILL is not None:
            try:
                prefill = cls.PREFILL(head_dim, dtype)
            except ValueError as error:
                notes = [f"prefills run without {cls.PREFILL.NAME}: {error}"]
        return TritonAttention(n_heads, n_kv_heads, head_dim, dtype, prefill), notes

    @staticmethod
    def refusal() -> str | None:
        """Why this machine's first GPU cannot be served on, or None."""
        if util.find_spec("triton") is None:
            return "paged attention on a GPU needs Triton; install the package triton"
        # Triton builds the glue between Python and a kernel in C.
        if not (os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")):
            return "Triton needs a C compiler (gcc or clang); install one, such as the package gcc"
        # Debian's own scheme for what is installed locally names no folder of headers.
        scheme = sysconfig.get_default_scheme().replace("posix_local", "posix_prefix")
        if not Path(sysconfig.get_path("include", scheme), "Python.h").is_file():
            return "Triton needs Python.h; install Python's headers, such as python3-dev"
        capability = torch.cuda.get_device_capability()
        if capability < LEAST_CAPABILITY:
            had, needed = ("{}.{}".format(*each) for each in (capability, LEAST_CAPABILITY))
            return (
                f"{torch.cuda.get_device_name()} has compute capability {had}, and paged "
                f"attention on a GPU needs {needed}"
            )
        return None


class FlashAttention(CudaAttention):
    """With flash-attn's prefill."""

    BLOCK_SIZE = PAGE
    PREFILL = FlashPrefill


class VarlenAttention(CudaAttention):
    """With the prefill of torch's `varlen_attn`."""

    BLOCK_SIZE = PAGE
    PREFILL = VarlenPrefill
