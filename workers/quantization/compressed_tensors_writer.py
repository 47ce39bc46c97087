"""How quantized layers are written: the formats of compressed_tensors.py that most servers read.

| format | bits | steps of a size | activations, where they are followed |
|---|---|---|---|
| `pack-quantized` | 4, 8 | a group of inputs, or a row | 16 bits |
| `int-quantized` | 8 | a row | int8, a scale for each token |
| `float-quantized` | 8, e4m3 | a row | e4m3, a scale for each token |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from workers.errors import UnsupportedModel
from workers.quantization.codes import pack
from workers.quantization.compressed_tensors import PACKED
from workers.quantization.steps import E4M3, Grid, Steps

FORMATS = (PACKED, "int-quantized", "float-quantized")
BITS = (4, 8)
SCALES = (torch.float16, torch.bfloat16, torch.float32)

Layout = tuple[torch.dtype, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class WrittenFormat:
    """A format with its settings."""

    name: str
    bits: int
    group: int = 0
    """Inputs of a scale; 0: all of a row."""

    def __post_init__(self) -> None:
        """Raises UnsupportedModel for what the format does not have."""
        if self.name not in FORMATS or self.bits not in BITS:
            raise UnsupportedModel(
                f"--format {self.name} with --bits {self.bits} is not written: formats are "
                f"{', '.join(FORMATS)}, and bits {' or '.join(map(str, BITS))}"
            )
        if self.name == PACKED:
            return
        if self.bits != 8 or self.group:
            raise UnsupportedModel(
                f"--format {self.name} has 8 bits and a scale for each row: give --bits 8, and "
                f"--group-size -1 or none; for others --format {PACKED}"
            )

    @property
    def grid(self) -> Grid:
        """What weights are rounded to."""
        return Grid(self.bits, self.group, self.name == "float-quantized")

    def settings(self, ignored: Sequence[str], most_first: bool) -> dict[str, Any]:
        """Return `quantization_config`. `ignored` are the names of linear layers that stay plain;
        `most_first` is in which order the inputs of the others were rounded."""
        kind = "float" if self.grid.e4m3 else "int"
        weights = {
            "num_bits": self.bits,
            "type": kind,
            "symmetric": True,
            "strategy": "group" if self.group else "channel",
            "group_size": self.group or None,
            "dynamic": False,
        }
        if most_first:
            weights["actorder"] = "static"
        inputs = None
        if self.name != PACKED:
            inputs = {
                "num_bits": 8,
                "type": kind,
                "symmetric": True,
                "strategy": "token",
                "dynamic": True,
            }
        group = {
            "targets": ["Linear"],
            "weights": weights,
            "input_activations": inputs,
            "output_activations": None,
            "format": self.name,
        }
        return {
            "quant_method": "compressed-tensors",
            "format": self.name,
            "quantization_status": "compressed",
            "config_groups": {"group_0": group},
            "ignore": list(ignored),
            "kv_cache_scheme": None,
        }

    def scales_of(self, dtype: torch.dtype) -> torch.dtype:
        """Return what the scales of a layer that was of `dtype` are in."""
        return dtype if dtype in SCALES else torch.float32

    def layout(self, n: int, k: int, dtype: torch.dtype) -> dict[str, Layout]:
        """Return the tensors of a layer that was [n, k] of `dtype`, by their names below its."""
        scale: Layout = (self.scales_of(dtype), (n, k // (self.group or k)))
        if self.name != PACKED:
            numbers = E4M3 if self.grid.e4m3 else torch.int8
            return {"weight": (numbers, (n, k)), "weight_scale": scale}
        return {
            "weight_packed": (torch.int32, (n, -(-k * self.bits // 32))),
            "weight_scale": scale,
            "weight_shape": (torch.int64, (2,)),
        }

    def tensors(self, steps: Steps) -> dict[str, torch.Tensor]:
        """Return a rounded weight as the tensors of `layout`."""
        numbers, scale = steps.numbers, {"weight_scale": steps.sizes}
        if self.name != PACKED:
            return {"weight": numbers.to(E4M3 if self.grid.e4m3 else torch.int8)} | scale
        codes = pack((numbers + 2 ** (self.bits - 1)).to(torch.uint8), self.bits)
        padded = torch.nn.functional.pad(codes, (0, -codes.shape[1] % 4)).contiguous()
        shape = torch.tensor(numbers.shape)
        return {"weight_packed": padded.view(torch.int32), **scale, "weight_shape": shape}
