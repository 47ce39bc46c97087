"""AWQ: 4-bit codes, a scale and a zero point for each group of inputs, in three layouts.

- `gemm`: qweight [k, n / 8], in whose words columns lie in the order ORDER.
- `gemv`: qweight [n, k / 8], columns in order; qzeros [n, z] and scales [n, 8 z] are filled up.
- `gemv_fast`, which llm-awq has too: int16 qweight [n / 4, k], of blocks of 4 rows and 64 columns;
  instead of zero points -scale * zero, float16 as the scales. Both are filled up, and transposed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import Codes, Groups, bytes_of, pack, unpack
from workers.quantization.grouped import (
    GroupedMethod,
    GroupedWeight,
    in_units,
    own_bias,
    own_group,
    own_groups,
    own_size,
)
from workers.quantization.method import Cut, Misfit, Size, Slot, Tensors
from workers.slices import Slices

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight columns is in each nibble of a word, the lowest first."""
VERSIONS = ("gemm", "gemv", "gemv_fast", "llm-awq")
HALF = (torch.float16, torch.bfloat16, torch.float32)
"""What scales may be."""


class AWQMethod(GroupedMethod):
    """The settings of one checkpoint."""

    name = "awq"
    in_integers = True
    flags = frozenset({"awq", "gptq", "marlin"})  # TGI's gptq reads such checkpoints too

    def __init__(self, group: int, version: str) -> None:
        """`group` is -1 where a row is one."""
        self._group, self._version = group, version
        self.columns = group if group > 0 else 8
        self.inputs_per_scale = max(group, 0)

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> AWQMethod:
        bits, version = config.get("bits", 4), str(config.get("version", "gemm")).lower()
        if config.get("backend") == "llm-awq":
            version = "llm-awq"
        if bits != 4:
            raise UnsupportedModel(f"its weights are in AWQ of {bits} bits; 4 are served")
        if version not in VERSIONS:
            raise UnsupportedModel(
                f"its weights are in AWQ's layout {version}; served are {', '.join(VERSIONS)}"
            )
        return cls(int(config.get("group_size", 128)), version)

    def describe(self) -> str:
        inputs = f"groups of {self._group} inputs" if self._group > 0 else "rows"
        return f"awq ({self._version}), 4 bits in {inputs}"

    def slots(self, size: Size, dtype: torch.dtype) -> dict[str, Slot]:
        n, k, bias = size
        integers = (torch.int32,)
        if self._version == "gemm":
            slots = {
                "qweight": Slot((k, n // 8), stored=integers),
                "qzeros": Slot((self._groups(k), n // 8), stored=integers),
                "scales": Slot((self._groups(k), n), stored=HALF),
            }
        elif self._version == "gemv":
            slots = {
                "qweight": Slot((n, k // 8), stored=integers),
                "qzeros": Slot((n, self._words(k)), stored=integers),
                "scales": Slot((n, 8 * self._words(k)), stored=HALF),
            }
        else:
            zeros = "scaled_zeros" if self._version == "llm-awq" else "qzeros"
            slots = {
                "qweight": Slot((n // 4, k), stored=(torch.int16,)),
                zeros: Slot((8 * self._words(k), n), stored=HALF),
                "scales": Slot((8 * self._words(k), n), stored=HALF),
            }
        return slots | ({"bias": Slot((n,), dtype)} if bias else {})

    def cut(self, size: Size, cut: Cut) -> dict[str, Slices]:
        outputs, inputs = cut
        own_group(self._size(size.inputs), size, cut)
        if self._version == "gemm":
            rows, columns = inputs, in_units(outputs, 8)
        elif self._version == "gemv":
            rows, columns = outputs, in_units(inputs, 8)
        else:
            rows, columns = in_units(outputs, 4), in_units(inputs, 64, 64)
        found: Slices = {} if rows is None else {0: rows}
        found |= {} if columns is None else {1: columns}
        return {"qweight": found} | ({} if outputs is None else {"bias": {0: outputs}})

    def weight(self, tensors: Tensors, size: Size, cut: Cut, dtype: torch.dtype) -> GroupedWeight:
        k = own_size(size, cut).inputs
        if self._version == "gemm":
            columns = _of_words(tensors["qweight"])
            codes = pack(columns.t().contiguous(), 4)
            zeros, scales = _of_words(tensors["qzeros"]).t(), tensors["scales"].t()
        elif self._version == "gemv":
            codes = bytes_of(tensors["qweight"]).clone()
            zeros = unpack(bytes_of(tensors["qzeros"]), 4, self._groups(size.inputs))
            scales = tensors["scales"][:, : self._groups(size.inputs)]
        else:
            codes = pack(_of_blocks(tensors["qweight"]), 4)
            scales = tensors["scales"][: self._groups(size.inputs)].t()
            zeros = self._from_products(tensors, scales)
        groups = own_groups(Groups(scales, zeros, self._size(size.inputs)), size, cut)
        return GroupedWeight(Codes(codes, k, 4), groups, dtype, own_bias(tensors.get("bias")))

    def _from_products(self, tensors: Tensors, scales: torch.Tensor) -> torch.Tensor:
        """The zero points of which a file has -scale * zero."""
        products = tensors.get("scaled_zeros", tensors.get("qzeros"))
        assert products is not None
        zeros = -products[: scales.shape[1]].t().float() / scales.float()
        zeros = torch.where(scales == 0, 0.0, zeros).round()
        if not bool(((zeros >= 0) & (zeros <= 15)).all()):
            raise Misfit("its scaled zero points are none of 0 to 15 times its scales")
        return zeros.to(torch.uint8)

    def _size(self, k: int) -> int:
        return self._group if self._group > 0 else k

    def _groups(self, k: int) -> int:
        return max(1, k // self._size(k))

    def _words(self, k: int) -> int:
        """Words that hold a zero point for each group, as AWQ fills them up."""
        group = self._size(k)
        together = next((n for least, n in ((128, 1), (64, 2), (32, 4)) if group >= least), 8)
        words = -(-self._groups(k) // 8)
        return -(-words // together) * together


def _of_words(words: torch.Tensor) -> torch.Tensor:
    """int32 [rows, n / 8] -> uint8 [rows, n]."""
    codes = torch.empty((*words.shape, 8), dtype=torch.uint8, device=words.device)
    for at, column in enumerate(ORDER):
        codes[..., column] = ((words >> (4 * at)) & 15).to(torch.uint8)
    return codes.view(len(words), -1)


def _of_blocks(words: torch.Tensor) -> torch.Tensor:
    """int16 [n / 4, k] -> uint8 [n, k]: the way back from AutoAWQ's `pack_intweight`."""
    n, k = 4 * len(words), words.shape[1]
    nibbles = torch.stack([(words >> (4 * at)) & 15 for at in range(4)], dim=-1).to(torch.uint8)
    rows = nibbles.view(n // 4, k // 64, 4, 64).transpose(1, 2).reshape(n, k)
    # Of eight columns the even ones come first; pairs of columns of four eights take turns.
    pairs = rows.view(n, k // 32, 4, 2, 4).transpose(3, 4).reshape(n, k // 32, 4, 4, 2)
    return pairs.transpose(2, 3).reshape(n, k)
