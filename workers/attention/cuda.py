"""Paged attention on a GPU."""

from __future__ import annotations

import os
import shutil
import sysconfig
from importlib import util
from pathlib import Path

import torch

from workers.attention.context import AttentionContext
from workers.attention.gather import attend_gathered
from workers.attention.paged import PagedAttention

LEAST_CAPABILITY = (8, 0)
"""Ampere: what Triton compiles for, and the first with bfloat16."""


class CudaAttention(PagedAttention):
    """The Triton kernels for what they take, plain torch for the rest; `notes` says what for."""

    def __init__(self, n_heads: int, n_kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
        # Only a torch built for CUDA brings Triton along.
        from workers.attention.triton_paged import TritonAttention

        try:
            kernels = TritonAttention(n_heads, n_kv_heads, head_dim, dtype)
        except ValueError as error:
            super().__init__(attend_gathered, [f"attention runs in plain torch, slower: {error}"])
            return

        def attend(
            query: torch.Tensor,
            key: torch.Tensor,
            value: torch.Tensor,
            layer: int,
            context: AttentionContext,
            scale: float,
            window: int,
            softcap: float,
            chunk: int = 0,
            sinks: torch.Tensor | None = None,
            slopes: torch.Tensor | None = None,
        ) -> torch.Tensor:
            given = query, key, value, layer, context, scale, window, softcap, chunk, sinks, slopes
            # A layer may have other heads than most.
            return (kernels if query.shape[1] == n_heads else attend_gathered)(*given)

        super().__init__(attend)

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
