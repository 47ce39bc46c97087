"""Compiles for a GPU, without one, each kernel that paged attention launches: `python -m
tests.workers.triton_compile 90 bfloat16 32 8 128 4096 50.0` (compute capability, dtype, heads,
key-value heads, head dim, window, softcap); with `extras` at the end, for chunks, sinks and slopes.

One line of JSON for each kernel: name, bytes of shared memory, bytes of stack that registers were
spilled to.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from workers.attention import triton_kernels
from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext, Prefill
from workers.attention.triton_paged import TritonAttention

KERNELS = ("write", "prefill", "decode", "combine")
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    int: "i32",
    float: "fp32",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


class Compiled:
    """Stands in for a kernel: a launch compiles it."""

    def __init__(self, kernel: Any, capability: int) -> None:
        self._kernel = kernel
        self._target = GPUTarget("cuda", capability, 32)

    def __getitem__(self, grid: tuple[int, ...]) -> Compiled:
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        given = dict(zip(self._kernel.arg_names, args, strict=False)) | kwargs
        signature, constants, hints = {}, {}, {}
        for at, parameter in enumerate(self._kernel.params):
            value = given.pop(parameter.name)
            if parameter.is_constexpr:
                signature[parameter.name] = "constexpr"
                constants[at,] = value
                continue
            tensor = isinstance(value, torch.Tensor)
            signature[parameter.name] = TYPES[value.dtype if tensor else type(value)]
            # As a launch finds them: GPU tensors here begin at multiples of 16 bytes.
            whole = tensor or (isinstance(value, int) and value % 16 == 0)
            if whole and not parameter.do_not_specialize:
                hints[at,] = [["tt.divisibility", 16]]
        source = ASTSource(self._kernel, signature, constants, hints)
        built = triton.compile(source, target=self._target, options=given)
        name = self._kernel.__name__
        print(json.dumps([name, built.metadata.shared, spilled(built.asm["cubin"])]))


def spilled(binary: bytes) -> int:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        said = subprocess.run(
            [CUOBJDUMP, "--dump-resource-usage", file.name], capture_output=True, text=True
        )
    (found,) = re.findall(r"STACK:(\d+)", said.stdout)
    return int(found)


def main(capability: int, dtype: torch.dtype, heads: tuple[int, int], *options: Any) -> None:
    head_dim, window, softcap, extras = options
    for name in KERNELS:
        setattr(triton_kernels, name, Compiled(getattr(triton_kernels, name), capability))
    n_heads, n_kv_heads = heads
    cache = PagedCache(1, 2, 16, n_kv_heads, head_dim, dtype)
    context = AttentionContext(
        cache,
        torch.arange(3),
        1,
        torch.zeros(1, 1, dtype=torch.int32),
        torch.ones(1, dtype=torch.int32),
        [Prefill(1, 2, 2, torch.ones(1, dtype=torch.int32))],
    )
    q, k, v = (torch.zeros(1, 3, n, head_dim, dtype=dtype) for n in (n_heads, *[n_kv_heads] * 2))
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attend = TritonAttention(n_heads, n_kv_heads, head_dim, dtype)
    per_head = torch.zeros(n_heads) if extras else None
    given = (head_dim**-0.5, window, softcap, 4096 if extras else 0, per_head, per_head)
    attend(q, k, v, 0, context, *given)


if __name__ == "__main__":
    capability, dtype, n_heads, n_kv_heads, head_dim, window = sys.argv[1:7]
    main(
        int(capability),
        getattr(torch, dtype),
        (int(n_heads), int(n_kv_heads)),
        int(head_dim),
        int(window),
        float(sys.argv[7]),
        "extras" in sys.argv[8:],
    )
