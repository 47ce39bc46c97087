"""bfloat16 weights as the C kernel of linear.c reads them."""

from __future__ import annotations

import ctypes
import functools
from pathlib import Path

import torch

from workers import native, team

SOURCE = Path(__file__).with_name("linear.c")


class _Layer(ctypes.Structure):
    """`layer` of linear.c, field by field."""

    _fields_ = (
        ("weight", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
    )


@functools.cache
def kernel() -> ctypes.CDLL:
    """linear.c, compiled and loaded once. Raises NativeUnavailable where that cannot be done, so
    also on a processor without AVX512_BF16."""
    library = native.load(SOURCE)
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.packed_size.argtypes = (integer, integer)
    library.packed_size.restype = integer
    library.pack.argtypes = (pointer, integer, integer, integer, pointer, integer)
    library.pack.restype = None
    library.linear.argtypes = (pointer, pointer, integer, pointer, integer, integer)
    library.linear.restype = None
    library.use_team.argtypes = (pointer,)
    library.use_team.restype = None
    library.use_team(team.run_function())
    return library


class PackedWeight:
    """A weight [n, k] in the kernel's order, with its bias; the tensor it came from is not kept.

    A row's result depends on that row alone: it has the same bits in a batch of any size, at any
    place in it, on any number of threads.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Weight [n, k] and bias [n], bfloat16 on a CPU. Raises NativeUnavailable."""
        self._linear = kernel().linear
        self.n, self.k = weight.shape
        self._padding = self.k % 2  # the kernel takes k in pairs
        weight = weight if weight.stride(1) == 1 else weight.contiguous()
        size = kernel().packed_size(self.n, self.k)
        self._packed = torch.empty(size, dtype=torch.bfloat16)
        kernel().pack(
            weight.data_ptr(),
            weight.stride(0),
            self.n,
            self.k,
            self._packed.data_ptr(),
            torch.get_num_threads(),
        )
        self._bias: torch.Tensor | None = None
        if bias is not None:
            self._bias = torch.zeros(size // (self.k + self._padding), dtype=torch.float32)
            self._bias[: self.n] = bias
        self._layer = _Layer(
            self._packed.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            self.n,
            self.k + self._padding,
        )
        self._layer_pointer = ctypes.byref(self._layer)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., k] -> [..., n]."""
        shape = x.shape
        if x.dtype is not torch.bfloat16 or not x.is_cpu or shape[-1] != self.k:
            raise ValueError(
                f"this layer takes bfloat16 on the cpu of shape [..., {self.k}], not {x.dtype} on "
                f"{x.device} of shape {list(shape)}"
            )
        if self._padding:
            x = torch.nn.functional.pad(x, (0, 1))
        if x.dim() != 2:
            x = x.reshape(-1, x.shape[-1])
        if x.stride(1) != 1:
            x = x.contiguous()
        out = x.new_empty((*shape[:-1], self.n))
        self._linear(
            self._layer_pointer,
            x.data_ptr(),
            x.stride(0),
            out.data_ptr(),
            x.shape[0],
            torch.get_num_threads(),
        )
        return out
