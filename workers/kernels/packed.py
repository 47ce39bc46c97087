"""Weights in the layout of the C kernel of linear.c."""

from __future__ import annotations

import ctypes
import functools

import torch

from workers import native
from workers.kernels.weight import LayerWeight

DTYPES = (torch.float32, torch.bfloat16)
Part = tuple[torch.Tensor, torch.Tensor | None]
"""A weight [n, k] and its bias [n]."""


class Weight(ctypes.Structure):
    """`weight` of linear.h, field by field."""

    _fields_ = (
        ("packed", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("k", ctypes.c_int64),
        ("bf16", ctypes.c_int64),
        ("gated", ctypes.c_int64),
        ("bits", ctypes.c_int64),
        ("group", ctypes.c_int64),
        ("scale_type", ctypes.c_int64),
        ("zeros", ctypes.c_int64),
        ("round_inputs", ctypes.c_int64),
        ("kind", ctypes.c_int64),
        ("table", ctypes.c_void_p),
        ("order", ctypes.c_void_p),
        ("minimums", ctypes.c_int64),
        ("block", ctypes.c_int64),
        ("below", ctypes.c_void_p),
    )


class Coded(ctypes.Structure):
    """`coded` of linear.h, field by field."""

    _fields_ = tuple(
        (name, ctypes.c_void_p)
        for name in ("codes", "scales", "zeros", "minimums", "factors", "minimum_factors")
    )


class Product(ctypes.Structure):
    """`product` of linear.h, field by field."""

    _fields_ = (
        ("weight", ctypes.POINTER(Weight)),
        ("x", ctypes.c_void_p),
        ("out", ctypes.c_void_p),
        ("x_stride", ctypes.c_int64),
        ("out_stride", ctypes.c_int64),
        ("m", ctypes.c_int64),
        ("mode", ctypes.c_int64),
        ("activation", ctypes.c_int64),
        ("scale", ctypes.c_double),
        ("then", ctypes.c_void_p),
    )


ACTIVATIONS = {"silu": 0, "gelu_tanh": 1, "gelu": 2}
"""Activations of linear.h, for gated weights."""


@functools.cache
def kernel() -> ctypes.CDLL:
    """Return the kernels, with the types of linear.c's. Raises NativeUnavailable."""
    library = native.kernels()
    pointer, integer = ctypes.c_void_p, ctypes.c_int64
    library.packed_size.argtypes = (integer, integer, integer)
    library.packed_size.restype = integer
    library.pack.argtypes = (pointer, *[integer] * 3, pointer, *[integer] * 3)
    library.pack.restype = None
    library.lanes.argtypes = ()
    library.lanes.restype = integer
    library.panel_width.argtypes = ()
    library.panel_width.restype = integer
    library.multiplies_bf16.argtypes = ()
    library.multiplies_bf16.restype = integer
    library.packed_codes_size.argtypes = (ctypes.POINTER(Weight),)
    library.packed_codes_size.restype = integer
    library.pack_codes.argtypes = (
        *(ctypes.POINTER(Weight), ctypes.POINTER(Coded)),
        *(pointer, integer, integer),
    )
    library.pack_codes.restype = None
    library.look_up.argtypes = (ctypes.POINTER(Weight), pointer, integer, pointer)
    library.look_up.restype = None
    library.linear.argtypes = (ctypes.POINTER(Product), integer)
    library.linear.restype = integer
    return library


class KernelWeight(LayerWeight):
    """A weight [n, k] in an order that linear.c reads, with its bias.

    A row's result depends on that row alone: it has the same bits in a batch of any size, at any
    place in it, on any number of threads.
    """

    struct: Weight

    def __init__(self, n: int, k: int, dtype: torch.dtype, activation: str) -> None:
        """`dtype` is that of activations and results, float32 or bfloat16. Raises
        NativeUnavailable."""
        self._linear = kernel().linear
        self.n, self.k, self.dtype = n, k, dtype
        self._padding = 0
        """Columns of zeros that activations need."""
        self._activation = ACTIVATIONS[activation]

    @property
    def bytes(self) -> int:
        return sum(one.nbytes for one in self.tensors)

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        """x [..., k] -> [..., n]."""
        shape = x.shape
        if x.dtype is not self.dtype or not x.is_cpu or shape[-1] != self.k:
            raise ValueError(
                f"this layer takes {self.dtype} on the cpu of shape [..., {self.k}], not {x.dtype} "
                f"on {x.device} of shape {list(shape)}"
            )
        if self._padding:
            x = torch.nn.functional.pad(x, (0, self._padding))
        if x.dim() != 2:
            x = x.reshape(-1, x.shape[-1])
        if x.stride(1) != 1:
            x = x.contiguous()
        out = x.new_empty((*shape[:-1], self.n))
        product = Product(
            ctypes.pointer(self.struct),
            x.data_ptr(),
            out.data_ptr(),
            x.stride(0),
            self.n,
            x.shape[0],
            0,
            self._activation,
            1.0,
            None,
        )
        if self._linear(product, torch.get_num_threads()):
            raise MemoryError(f"no memory for {x.shape[0]} rows of activations in int8")
        return out


class PackedWeight(KernelWeight):
    """A weight in float32 or bfloat16; the tensor it came from is not kept."""

    def __init__(
        self,
        weight: torch.Tensor,
        bias: torch.Tensor | None = None,
        up: Part | None = None,
        activation: str = "silu",
    ) -> None:
        """Pack weight [n, k] and bias [n], float32 or bfloat16 on a CPU. With `up`, a weight and a
        bias of the same shapes: the result is activation(x weight + bias) * (x up + its bias).

        Raises NativeUnavailable, and ValueError for another dtype or device.
        """
        if weight.dtype not in DTYPES or not weight.is_cpu:
            raise ValueError(f"packed are float32 and bfloat16 on the cpu, not {weight.dtype} on "
                             f"{weight.device}")  # fmt: skip
        super().__init__(weight.shape[0], weight.shape[1], weight.dtype, activation)
        bf16 = weight.dtype is torch.bfloat16
        self._padding = self.k % 2 if bf16 else 0  # bfloat16 is stored in pairs of k
        parts = [(weight, bias)] if up is None else [(weight, bias), up]
        size = kernel().packed_size(self.n, self.k, bf16)
        self._packed = torch.empty(size * len(parts), dtype=weight.dtype)
        for at, (part, _) in enumerate(parts):
            part = part if part.stride(1) == 1 else part.contiguous()
            kernel().pack(
                part.data_ptr(),
                part.stride(0),
                self.n,
                self.k,
                self._packed.data_ptr(),
                bf16,
                at + 1 if len(parts) > 1 else 0,
                torch.get_num_threads(),
            )
        self._bias = packed_bias([one for _, one in parts], size // (self.k + self._padding))
        self.struct = Weight(
            self._packed.data_ptr(),
            None if self._bias is None else self._bias.data_ptr(),
            self.n,
            self.k + self._padding,
            bf16,
            len(parts) > 1,
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors that it keeps in memory."""
        return [self._packed] if self._bias is None else [self._packed, self._bias]


def packed_bias(parts: list[torch.Tensor | None], size: int) -> torch.Tensor | None:
    """Return float32 [size * parts], in the kernel's order: panel by panel, part by part. None
    where a part has none."""
    width = kernel().panel_width()
    given = [part for part in parts if part is not None]
    if len(given) < len(parts):
        return None
    padded = [torch.nn.functional.pad(part.float(), (0, size - len(part))) for part in given]
    panels = zip(*(one.split(width) for one in padded), strict=True)
    return torch.cat([piece for panel in panels for piece in panel])
