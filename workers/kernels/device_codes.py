"""Linear layers on a GPU, for weights in codes of 4 or 8 bits; in memory once.

How a product is made goes by its rows x [rows, k] alone, and so does what is rounded:

- up to GEMV_ROWS, in 16 bits: by a Triton kernel from the codes; a row gets what it adds up in
  float32, and nothing of the weight is rounded;
- up to CODED_ROWS, in 16 bits: by one for tensor cores, as above but for the entries of a table,
  which are rounded to the dtype of x;
- beyond UNROUNDED_ROWS, of e4m3 with a scale for each row, in bfloat16: by torch's product of e4m3
  where the GPU has it, x being rounded to e4m3 with a scale for each row of it;
- else: by cuBLAS, the weight being dequantized to the dtype of x, a piece at a time. So for
  float32, in which the weight is exactly what it stands for.
"""

from __future__ import annotations

import functools
from dataclasses import fields, replace
from typing import Any

import torch
import triton
from torch.nn.functional import linear, pad

from workers.kernels import triton_codes as kernels
from workers.kernels.codes import CodedWeight
from workers.kernels.device_linear import GEMV_ROWS, TILE, gated, parts_of, wide_linear
from workers.kernels.weight import LayerWeight

MOST_TILE = 64
"""Rows of x that a program of `coded_narrow` takes at most: x comes from the L2 cache for each."""
CODED_ROWS = 128
"""A weight that is dequantized goes to memory and back, which takes as long as two to four tiles
of x do by themselves."""
UNROUNDED_ROWS = 64
"""Beyond, in two tiles, the product of e4m3 is faster by so much that x is rounded for it."""
RUN = 32
"""Inputs that are together in one part of a block of words, see triton_codes.py."""
MOST_WORDS = 1024
"""Words of a row that a program of `coded_gemv` takes at once: 16 bytes a thread."""
STAGES = {16: 5, 32: 4}
"""Tiles of weights and x on their way, by the rows of x; else 3. All fit in 99 KB, with 64 rows 24
KB each."""
PIECE = 2**27
"""Numbers that are dequantized at a time."""
DEQUANTIZED = (16, 64)
"""Rows, and words of them, that a program of `dequantize` takes."""
LONG = 1024
"""Inputs that a program of `quantize_rows` takes at once."""
E4M3 = torch.float8_e4m3fn
SCALES = (torch.float32, torch.float16, torch.bfloat16)
READ = {"codes", "scales", "bits", "group", "zeros", "bias", "kind", "table", "order"}
"""What of a `CodedWeight` the kernels know."""


class DeviceCodes(LayerWeight):
    """A `device_linear.Product` of codes."""

    def __init__(self, given: CodedWeight, dtype: torch.dtype) -> None:
        """Copy the codes, of any bits; keep the bias, table and order. `dtype` is that of
        activations. Raises ValueError for groups that the kernels do not have."""
        self.n, self.k = given.codes.shape
        self.dtype, self.kind = dtype, given.kind
        whole = given.group >= self.k
        self.group = 0 if whole else given.group
        if self.group % RUN:
            raise ValueError(f"groups are of a multiple of {RUN} inputs, not {given.group}")
        names = {one.name for one in fields(given) if getattr(given, one.name) is not None}
        if names - READ or given.scales.dtype not in SCALES:
            more = ", ".join(sorted(names - READ)) or f"scales in {given.scales.dtype}"
            raise ValueError(f"the kernels of a GPU do not take {more}")
        self.bits, codes = 4 if given.bits <= 4 else 8, given.codes
        if given.kind == "integer" and given.zeros is None and given.bits < self.bits:
            codes = codes + (2 ** (self.bits - 1) - 2 ** (given.bits - 1))
        self.words = words_of(codes, self.bits)
        scales = _by_group(given.scales)
        self.rounds_inputs = dtype is torch.bfloat16 and _has_scaled_mm(given, whole)
        """Whether products of many rows have x in e4m3."""
        if self.rounds_inputs:
            self.note = (
                f"in steps of more than {UNROUNDED_ROWS} tokens, activations are rounded to e4m3 "
                "where weights are (docs/quantization.md)"
            )
        self.scales = scales.float() if self.rounds_inputs else scales
        self.zeros = None if given.zeros is None else _by_group(given.zeros)
        self.bias, self.order = given.bias, given.order
        self._table = given.table
        self._exponent = self.words.new_full((1,), kernels.EXPONENT.value, dtype=torch.int32)

    @property
    def tensors(self) -> list[torch.Tensor]:
        held = (self.scales, self.zeros, self.bias, self.order, self._table)
        return [self.words, self._exponent, *(one for one in held if one is not None)]

    def apply(self, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, self.k).contiguous()
        parts = self.parts(rows) if len(rows) else x.new_empty((1, 0, self.n))
        summed = parts.squeeze(0) if len(parts) == 1 else parts.sum(0)
        return summed.to(x.dtype).view(*x.shape[:-1], self.n)

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inputs(x)
        if not self.is_few(x):
            return self.product(x).unsqueeze(0)
        n_parts = 1 if len(x) <= GEMV_ROWS else parts_of(self.n, self.k)
        out = x.new_empty((n_parts, len(x), self.n), dtype=torch.float32)
        multiply(out, x, self)
        return out

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inputs(x)
        if not self.is_few(x):
            return self._dequantized_product(x, wide=True)
        out = x.new_empty((1, len(x), self.n), dtype=torch.float32)
        multiply(out, x, self)
        return out.squeeze(0)

    def inputs(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [rows, k] in the order of the codes."""
        return x if self.order is None else x.index_select(1, self.order)

    def is_few(self, x: torch.Tensor) -> bool:
        """Whether these rows are multiplied with the codes."""
        most = UNROUNDED_ROWS if self.rounds_inputs else CODED_ROWS
        return x.dtype is not torch.float32 and len(x) <= most

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [rows, k], many and in the order of the codes -> [rows, n] of its dtype."""
        if self.rounds_inputs:
            return self._scaled_product(x)
        return self._dequantized_product(x, wide=False)

    def dequantized(self, first: int, n: int, dtype: torch.dtype) -> torch.Tensor:
        """Return `n` rows of the weight, [n, k] in the order of the codes."""
        out = self.words.new_empty((n, self.k), dtype=dtype)
        tall, wide = DEQUANTIZED
        kernels.dequantize[(triton.cdiv(n, tall), triton.cdiv(self.words.shape[1], wide))](
            out,
            self.words,
            self.scales,
            *self._or_scales(self.zeros, self._table),
            first,
            n,
            self.n,
            self.k,
            **self._form,
            BN=tall,
            BW=wide,
        )
        return out

    def _dequantized_product(self, x: torch.Tensor, wide: bool) -> torch.Tensor:
        step = max(1, PIECE // self.k)
        pieces = []
        for first in range(0, self.n, step):
            n = min(step, self.n - first)
            bias = None if self.bias is None else self.bias[first : first + n]
            weight = self.dequantized(first, n, x.dtype)
            pieces.append((wide_linear if wide else linear)(x, weight, bias))
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim=1)

    def _scaled_product(self, x: torch.Tensor) -> torch.Tensor:
        rows, n_bytes = len(x), 2 * self.words.shape[1]
        codes = torch.empty((rows, n_bytes), dtype=E4M3, device=x.device)
        scales = torch.empty((rows, 1), dtype=torch.float32, device=x.device)
        kernels.quantize_rows[(rows,)](codes, scales, x, self.k, SIZE=LONG)
        # Inputs lie in another order in both, which a sum over them does not see.
        return torch._scaled_mm(
            codes,
            self.words.view(E4M3).t(),
            scale_a=scales,
            scale_b=self.scales,
            bias=self.bias,
            out_dtype=x.dtype,
        )

    @property
    def others(self) -> tuple[torch.Tensor, ...]:
        """The tensors that a kernel that multiplies takes behind the words."""
        given = self._or_scales(self.zeros, self._table, self.bias)
        return (self.scales, *given, self._exponent)

    @property
    def constants(self) -> dict[str, Any]:
        """What those kernels are compiled for."""
        parts = 16 // self.bits
        # A group of 0 inputs, which are all, has all parts.
        span = next(n for n in (parts, parts // 2, 1) if self.group % (n * RUN) == 0)
        return self._form | {"SPAN": span, "BIAS": self.bias is not None}

    @property
    def _form(self) -> dict[str, Any]:
        return {
            "BITS": self.bits,
            "KIND": self.kind,
            "ZEROS": self.zeros is not None,
            "GROUP": self.group,
        }

    def _or_scales(self, *tensors: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """What is missing is not read; a pointer has to be given all the same."""
        return tuple(self.scales if one is None else one for one in tensors)


class GatedCodes:
    """A `device_linear.GatedProduct` of codes, the two weights in one: their rows alternate."""

    def __init__(
        self, gate: CodedWeight, up: CodedWeight, dtype: torch.dtype, activation: str
    ) -> None:
        """Of the same shapes; the activation is one of `Numbers`'."""
        self._both = DeviceCodes(_alternating(gate, up), dtype)
        self.note = self._both.note
        self._activation = activation

    @property
    def tensors(self) -> list[torch.Tensor]:
        return self._both.tensors

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        both = self._both
        x = both.inputs(x)
        if not both.is_few(x):
            return gated(both.product(x), self._activation)
        out = x.new_empty((len(x), both.n // 2))
        multiply(out.unsqueeze(0), x, both, self._activation)
        return out


def words_of(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """uint8 [n, k] -> int16 [n, words], as triton_codes.py has them."""
    parts = 16 // bits
    padded = pad(codes, (0, -codes.shape[1] % (RUN * parts)))
    each = padded.reshape(len(codes), -1, parts, RUN).unbind(2)
    if bits == 4:
        each = (each[0] | (each[1] << 4), each[2] | (each[3] << 4))
    return torch.stack(each, dim=-1).view(torch.int16).view(len(codes), -1)


def multiply(out: torch.Tensor, x: torch.Tensor, codes: DeviceCodes, activation: str = "") -> None:
    """Multiply by the kernel for so few rows, into `out` [n_parts, rows, n], or with an activation
    [1, rows, n / 2]; no more than one part up to GEMV_ROWS."""
    (gemv if len(x) <= GEMV_ROWS else narrow)(out, x, codes, activation)


def gemv(out: torch.Tensor, x: torch.Tensor, codes: DeviceCodes, activation: str = "") -> None:
    """See `multiply`."""
    n_words = codes.words.shape[1]
    tall = 8 if codes.n >= 16384 else 4 if codes.n >= 4096 else 2
    kernels.coded_gemv[(triton.cdiv(codes.n, tall),)](
        out,
        x,
        codes.words.view(torch.int32),
        *codes.others,
        len(x),
        codes.n,
        codes.k,
        **codes.constants,
        ACTIVATION=activation,
        M=triton.next_power_of_2(len(x)),
        BN=tall,
        BW=min(MOST_WORDS, triton.next_power_of_2(n_words)),
    )


def narrow(out: torch.Tensor, x: torch.Tensor, codes: DeviceCodes, activation: str = "") -> None:
    """See `multiply`."""
    n_parts = len(out)
    n_blocks = codes.words.shape[1] // RUN
    wide = min(MOST_TILE, max(16, triton.next_power_of_2(len(x))))
    # With zero points there are sums of x, too: tensor memory, where there is such, has no room for
    # those of 128 by 64.
    tall = TILE if wide == 16 or (wide > 32 and codes.zeros is not None) else 2 * TILE
    kernels.coded_narrow[(triton.cdiv(len(x), wide), triton.cdiv(codes.n, tall), n_parts)](
        out,
        x,
        codes.words,
        *codes.others,
        len(x),
        codes.n,
        codes.k,
        triton.cdiv(n_blocks, n_parts) * RUN,
        **codes.constants,
        ACTIVATION=activation,
        M=wide,
        BN=tall,
        EVEN=codes.k == codes.words.shape[1] * 16 // codes.bits,
        STAGES=STAGES.get(wide, 3),
        num_warps=tall // 16,
    )


def _alternating(gate: CodedWeight, up: CodedWeight) -> CodedWeight:
    """Both in one, gate, up, gate, up ..."""

    def both(one: torch.Tensor | None, other: torch.Tensor | None) -> torch.Tensor | None:
        if one is None or other is None:
            return None
        return torch.stack((one, other), dim=1).flatten(0, 1)

    codes, scales = both(gate.codes, up.codes), both(gate.scales, up.scales)
    assert codes is not None
    assert scales is not None
    zeros, bias = both(gate.zeros, up.zeros), both(gate.bias, up.bias)
    return replace(gate, codes=codes, scales=scales, zeros=zeros, bias=bias)


def _by_group(numbers: torch.Tensor) -> torch.Tensor:
    """[n, groups] -> [groups, n]."""
    return numbers.t().clone(memory_format=torch.contiguous_format)


def _has_scaled_mm(given: CodedWeight, whole_rows: bool) -> bool:
    """Whether torch multiplies such codes with others of e4m3 on this GPU."""
    fits = given.kind == "e4m3" and whole_rows and given.codes.shape[0] % 16 == 0
    return fits and given.codes.is_cuda and _multiplies_e4m3(given.codes.device)


@functools.cache
def _multiplies_e4m3(device: torch.device) -> bool:
    """Try it: of new GPUs it depends on what torch was built for."""
    if torch.cuda.get_device_capability(device) < (8, 9):
        return False
    codes = torch.zeros((16, 2 * RUN), device=device).to(E4M3)
    ones = torch.ones((16, 1), device=device)
    try:
        torch._scaled_mm(codes, codes.t(), scale_a=ones, scale_b=ones.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, ValueError):
        return False
    return True
