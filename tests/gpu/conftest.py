"""Every test here is marked `gpu`. Those of the kernels also run without a GPU, in Triton's
interpreter, when TRITON_INTERPRET=1 is set before Triton is imported, as
tests/workers/kernels/test_triton.py does, in a process of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

HERE = Path(__file__).parent
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker("gpu")


@pytest.fixture(scope="session")
def device() -> Iterator[str]:
    """Where the kernels can run, compiled or interpreted."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            multiply_bfloat16(patch)
            round_to_e4m3(patch)
            prepare_once(patch)
            yield "cpu"
        elif torch.cuda.is_available():
            yield "cuda"
        else:
            pytest.skip("there is no NVIDIA GPU")


def multiply_bfloat16(patch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter holds bfloat16 as its bits, and multiplies matrices of these."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    dot = interpreter.InterpreterBuilder.create_dot

    def widened(x: Any) -> Any:
        if x.dtype.scalar != interpreter.tl.bfloat16:
            return x
        wide = (x.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(wide, interpreter.tl.float32)

    def create_dot(builder: Any, a: Any, b: Any, *others: Any) -> Any:
        return dot(builder, widened(a), widened(b), *others)

    patch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def round_to_e4m3(patch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter leaves the exponent as it is where rounding carries over into it."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    convert = interpreter.InterpreterBuilder.create_fp_to_fp

    def create_fp_to_fp(builder: Any, x: Any, kind: Any, mode: Any) -> Any:
        if kind.scalar != interpreter.tl.float8e4nv or x.dtype.scalar != interpreter.tl.float32:
            return convert(builder, x, kind, mode)
        rounded = torch.from_numpy(x.data).to(torch.float8_e4m3fn).view(torch.uint8)
        return interpreter.TensorHandle(rounded.numpy(), kind.scalar)

    patch.setattr(interpreter.InterpreterBuilder, "create_fp_to_fp", create_fp_to_fp)


def prepare_once(patch: pytest.MonkeyPatch) -> None:
    """Each function called from a kernel makes those of the language interpreted ones, as the
    launch and others before it have, and that takes more time than all else."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    ready: set[str] = set()

    def call(function: Any, *args: Any, **kwargs: Any) -> Any:
        if function.fn.__module__ not in ready:
            interpreter._patch_lang(function.fn)
            ready.add(function.fn.__module__)
        return function.rewrite()(*args, **kwargs)

    patch.setattr(interpreter.InterpretedFunction, "__call__", call)


@pytest.fixture(scope="session")
def cuda(device: str) -> torch.device:
    """A real GPU."""
    if device == "cpu":
        pytest.skip("what runs is interpreted, and this needs an NVIDIA GPU")
    return torch.device("cuda")
