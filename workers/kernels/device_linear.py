"""Linear layers on a GPU, for weights as transformers has them: [n, k] in rows.

How a product is made goes by its rows x [rows, k] alone:

- up to GEMV_ROWS: a Triton kernel that is done when the weights have arrived, exact in float32;
- up to NARROW_ROWS, in 16 bits: one that pads the rows for tensor cores. Where the weight has too
  few rows to fill the GPU, several programs share the columns of one, and leave as many partial
  results. How many depends on the weight alone;
- beyond: cuBLAS. So for float32, which it multiplies exactly (torch's default, no TF32).
"""

from __future__ import annotations

from typing import Protocol

import torch
import triton
from torch.nn.functional import linear

from workers.kernels import triton_linear as kernels

GEMV_ROWS = 4
NARROW_ROWS = 32
"""At 64 rows, x would come from the L2 cache as fast as the weights have to come from memory."""
PROGRAMS = 256
"""Programs of `narrow`: two for each multiprocessor of an H200, which has 132."""
MOST_PARTS = 8
TILE = 64
"""Rows of weights, and columns, that a program of `narrow` takes at once: 8 KB in 16 bits."""
LEAST_TILES = 4
"""Least tiles of a program along the columns: so many are loaded at once."""
STAGES = 5
"""Four tiles of weights, 32 KB, on their way for each of PROGRAMS; 50 to 60 KB of shared memory
hold them and those of x."""
PAIRS = 1024
"""Pairs of gate and up that a program of `gate` takes."""


class Product(Protocol):
    """A weight [n, k] and a bias [n], whatever form they have on a GPU."""

    n: int
    note: str | None
    """What was given up for this form, for the log."""

    @property
    def tensors(self) -> list[torch.Tensor]: ...

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [rows, k], contiguous -> [n_parts, rows, n], whose sum is the result; float32,
        or with many rows, which give one part, the dtype of x."""
        ...

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [rows, k], contiguous -> float32 [rows, n]."""
        ...


class GatedProduct(Protocol):
    """activation(x gate^T) * (x up^T)."""

    note: str | None
    """See `Product`."""

    @property
    def tensors(self) -> list[torch.Tensor]: ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return x [rows, k], contiguous -> [rows, n] of its dtype."""
        ...


class DeviceLinear:
    """A `Product`; in memory once."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        """Keep these tensors, the weight in contiguous rows."""
        self.weight, self.bias = weight, bias
        self.n, self.k = weight.shape
        self.note: str | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [self.weight] if self.bias is None else [self.weight, self.bias]

    def parts(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if not _is_few(rows, x.dtype):
            return linear(x, self.weight, self.bias).unsqueeze(0)
        n_parts = 1 if rows <= GEMV_ROWS else parts_of(self.n, self.k)
        out = x.new_empty((n_parts, rows, self.n), dtype=torch.float32)
        multiply(out, x, self.weight, self.bias)
        return out

    def whole(self, x: torch.Tensor) -> torch.Tensor:
        if _is_few(len(x), x.dtype):
            out = x.new_empty((1, len(x), self.n), dtype=torch.float32)
            multiply(out, x, self.weight, self.bias)
            return out.squeeze(0)
        return wide_linear(x, self.weight, self.bias)


class GatedLinear:
    """A `GatedProduct`, the two weights in one: their rows alternate."""

    def __init__(
        self,
        gate: tuple[torch.Tensor, torch.Tensor | None],
        up: tuple[torch.Tensor, torch.Tensor | None],
        activation: str,
    ) -> None:
        """Weights [n, k] and biases [n], which are copied; the activation is one of `Numbers`'."""
        (gate_weight, gate_bias), (up_weight, up_bias) = gate, up
        self.n, self.k = gate_weight.shape
        both = torch.stack((gate_weight, up_weight), dim=1).view(2 * self.n, self.k)
        biases = (
            None
            if gate_bias is None or up_bias is None
            else torch.stack((gate_bias, up_bias), dim=1).view(-1)
        )
        self._both = DeviceLinear(both, biases)
        self.note = self._both.note
        self._activation = activation

    @property
    def tensors(self) -> list[torch.Tensor]:
        return self._both.tensors

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        rows = len(x)
        if _is_few(rows, x.dtype):
            out = x.new_empty((rows, self.n))
            multiply(out.unsqueeze(0), x, self._both.weight, self._both.bias, self._activation)
            return out
        return gated(linear(x, self._both.weight, self._both.bias), self._activation)


def wide_linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return x [rows, k] -> float32 [rows, n], not rounded to the dtype of x on the way."""
    if x.dtype is torch.float32 or x.device.type != "cuda":
        return linear(x, weight, bias).float()
    product: torch.Tensor = torch.mm(x, weight.t(), out_dtype=torch.float32)
    return product if bias is None else product + bias


def gated(both: torch.Tensor, activation: str) -> torch.Tensor:
    """Return gate, up, gate, up ... [rows, 2 n] -> activation(gate) * up [rows, n]."""
    rows, columns = both.shape
    out = both.new_empty((rows, columns // 2))
    kernels.gate[(triton.cdiv(out.numel(), PAIRS),)](
        out, both, out.numel(), ACTIVATION=activation, SIZE=PAIRS
    )
    return out


def parts_of(n: int, k: int) -> int:
    """Return how many programs of `narrow` share the columns of a weight [n, k]."""
    n_parts = 1
    while (
        triton.cdiv(n, TILE) * n_parts < PROGRAMS
        and n_parts < MOST_PARTS
        and k >= 2 * n_parts * LEAST_TILES * TILE
    ):
        n_parts *= 2
    return n_parts


def multiply(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "",
) -> None:
    """Multiply by the kernel for so few rows, into `out` [n_parts, rows, n], or with an activation
    [1, rows, n / 2]; no more than one part up to GEMV_ROWS."""
    (gemv if len(x) <= GEMV_ROWS else narrow)(out, x, weight, bias, activation)


def gemv(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "",
) -> None:
    """See `multiply`."""
    n, k = weight.shape
    wide, long = _gemv_tile(n, k)
    kernels.gemv[(triton.cdiv(n, wide),)](
        *_given(out, x, weight, bias),
        BIAS=bias is not None,
        ACTIVATION=activation,
        M=triton.next_power_of_2(len(x)),
        BN=wide,
        BK=long,
    )


def narrow(
    out: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    activation: str = "",
) -> None:
    """See `multiply`."""
    n, k = weight.shape
    n_parts = len(out)
    kernels.narrow[(triton.cdiv(n, TILE), n_parts)](
        *_given(out, x, weight, bias),
        triton.cdiv(triton.cdiv(k, TILE), n_parts) * TILE,
        BIAS=bias is not None,
        ACTIVATION=activation,
        M=max(16, triton.next_power_of_2(len(x))),
        BN=TILE,
        BK=TILE,
        EVEN=k % TILE == 0,
        STAGES=STAGES,
    )


def _given(
    out: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[object, ...]:
    """Return the first arguments of both kernels. A missing bias is not read; a pointer has to be
    given all the same."""
    return (out, x, weight, weight if bias is None else bias, len(x), *weight.shape)


def _is_few(rows: int, dtype: torch.dtype) -> bool:
    """Return whether these rows go through one of our kernels."""
    return rows <= (GEMV_ROWS if dtype is torch.float32 else NARROW_ROWS)


def _gemv_tile(n: int, k: int) -> tuple[int, int]:
    """Return rows and columns of weights that a program of `gemv` takes at once: more than a
    thousand programs from n = 2,048 on, so that all multiprocessors have several."""
    wide = 8 if n >= 16384 else 4 if n >= 4096 else 2
    return wide, min(2048 if wide == 2 else 1024, max(16, triton.next_power_of_2(k)))
