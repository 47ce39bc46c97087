"""Compiles Triton kernels for GPUs that are not there, and says what they take of one.

Two ways: `compiled`, of a kernel and its arguments by name; or `standing_in`, within which what a
piece of code launches is compiled instead. Modules named `triton_compile_{part}` use them, and
`triton_process.compile` runs those. TRITON_INTERPRET must not be 1.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from tests.helpers.triton_process import Build

TYPES = {
    torch.bfloat16: "*bf16",
    torch.float16: "*fp16",
    torch.float32: "*fp32",
    torch.float64: "*fp64",
    torch.int32: "*i32",
    torch.int64: "*i64",
    torch.int8: "*i8",
    torch.uint8: "*u8",
    int: "i32",
    float: "fp32",
}
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


def compiled(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    capability: int,
    num_warps: int = 4,
    num_stages: int = 3,
    keep: Path | None = None,
) -> Build:
    """`signature` has a type for each argument that is not in `constants`, as Triton writes it:
    "*bf16", "fp32", "i32"; with ":16" behind it for an address or a number that is a multiple of 16
    (torch's own allocations are, and so a launch finds them). PTX and the rest go to `keep`.
    """
    types: dict[str, str] = {}
    values, hints = {}, {}
    for at, parameter in enumerate(kernel.params):
        name = parameter.name
        if name in constants:
            types[name] = "constexpr"
            values[at,] = constants[name]
        else:
            types[name], _, whole = signature[name].partition(":")
            if whole:
                hints[at,] = [["tt.divisibility", 16]]
    given = {*signature, *constants} - {parameter.name for parameter in kernel.params}
    if given:
        raise ValueError(f"{kernel.__name__} has no {', '.join(sorted(given))}")
    built = triton.compile(
        ASTSource(kernel, types, values, hints),
        target=GPUTarget("cuda", capability, 32),
        options={"num_warps": num_warps, "num_stages": num_stages},
    )
    if keep is not None:
        (keep / f"{kernel.__name__}.ptx").write_text(built.asm["ptx"])
        (keep / f"{kernel.__name__}.ttgir").write_text(built.asm["ttgir"])
    usage = _resource_usage(built.asm["cubin"])
    # Where a kernel takes more tensor memory than there is, the PTX is of one that does nothing.
    return Build(
        kernel.__name__,
        built.metadata.shared,
        usage["STACK"],
        usage["REG"],
        getattr(built.metadata, "tmem_size", None) or 0,
    )


@contextmanager
def standing_in(
    module: ModuleType, names: tuple[str, ...], capability: int, keep: Path | None = None
) -> Iterator[None]:
    """Launches of these kernels of `module` within compile them, and print their `Build` as JSON.

    The addresses of tensors are taken to be multiples of 16, as torch's allocations are.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            patch.setattr(module, name, _StandIn(getattr(module, name), capability, keep))
        yield


class _StandIn:
    def __init__(self, kernel: Any, capability: int, keep: Path | None) -> None:
        self._kernel = kernel
        self._capability = capability
        self._keep = keep

    def __getitem__(self, grid: tuple[int, ...]) -> _StandIn:
        return self

    def __call__(self, *args: Any, num_warps: int = 4, num_stages: int = 3, **kwargs: Any) -> None:
        given = dict(zip(self._kernel.arg_names, args, strict=False)) | kwargs
        signature, constants = {}, {}
        for parameter in self._kernel.params:
            value = given[parameter.name]
            if parameter.is_constexpr:
                constants[parameter.name] = value
                continue
            tensor = isinstance(value, torch.Tensor)
            whole = tensor or (isinstance(value, int) and value % 16 == 0)
            kind = TYPES[value.dtype if tensor else type(value)]
            hint = ":16" if whole and not parameter.do_not_specialize else ""
            signature[parameter.name] = kind + hint
        built = compiled(
            self._kernel,
            signature,
            constants,
            self._capability,
            num_warps,
            num_stages,
            self._keep,
        )
        print(json.dumps(built))


def _resource_usage(binary: bytes) -> dict[str, int]:
    """Of the one kernel in a cubin: REG, STACK and others."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        command = [str(CUOBJDUMP), "--dump-resource-usage", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True)
    return {name: int(n) for name, n in re.findall(r"\b([A-Z]+):(\d+)", said.stdout)}
