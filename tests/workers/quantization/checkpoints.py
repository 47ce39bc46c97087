"""Quantized checkpoints as their writers lay them out, one element at a time, and the dense models
that they stand for."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file

from workers.models.weight_files import SINGLE
from workers.quantization.method import Cut, QuantMethod, QuantWeight, Size
from workers.slices import cut as cut_tensor

LINEAR = re.compile(r"(.*\.(?:\w+_proj|w[123]))\.weight")
Integers = npt.NDArray[np.int64]


class Rounded(NamedTuple):
    """A weight [n, k] in codes: (code - zero) * scale, by groups of inputs."""

    codes: Integers
    scales: torch.Tensor
    """float16 [n, groups]."""
    zeros: Integers
    """[n, groups]."""
    group: npt.NDArray[np.int64]
    """[k]: of each input."""

    @property
    def dense(self) -> torch.Tensor:
        """float32 [n, k]."""
        codes = self.codes - self.zeros[:, self.group]
        values = codes * self.scales.double().numpy()[:, self.group]
        return torch.from_numpy(values).float()


def rounded(
    weight: torch.Tensor,
    bits: int,
    size: int,
    *,
    symmetric: bool = False,
    group: npt.NDArray[np.int64] | None = None,
) -> Rounded:
    """Round a weight to nearest. Zero points are any that there can be, 0 among them."""
    k = weight.shape[1]
    size = size if size > 0 else k
    if group is None:
        group = np.arange(k) // size
    most, n_groups = 2**bits - 1, int(group.max()) + 1
    values = weight.double().numpy()
    low = np.stack([values[:, group == g].min(1) for g in range(n_groups)], 1)
    high = np.stack([values[:, group == g].max(1) for g in range(n_groups)], 1)
    if symmetric:
        high = np.maximum(np.abs(low), np.abs(high))
        low = -high
    # Every third group is far on one side, as in a layer without negative weights.
    else:
        low[:, ::3] = 0.0
    scales = torch.from_numpy(np.maximum(high - low, 1e-3) / most).half()
    exact = scales.double().numpy()
    zeros = np.clip(np.round(-low / exact), 0, most).astype(np.int64)
    if symmetric:
        zeros[:] = 2 ** (bits - 1)
    codes = np.round(values / exact[:, group]) + zeros[:, group]
    return Rounded(np.clip(codes, 0, most).astype(np.int64), scales, zeros, group)


def words(rows: Integers, bits: int, order: tuple[int, ...] | None = None) -> torch.Tensor:
    """Numbers [rows, m] in int32 [rows, m * bits / 32], each bit where it belongs. With `order`,
    place i of every len(order) has the number order[i]."""
    order = order or (0,)
    n_rows, m = rows.shape
    found = np.zeros((n_rows, -(-m * bits // 32)), dtype=np.uint64)
    for at in range(m):
        number = rows[:, at // len(order) * len(order) + order[at % len(order)]]
        for bit in range(bits):
            word, place = divmod(at * bits + bit, 32)
            found[:, word] |= (((number >> bit) & 1) << place).astype(np.uint64)
    return torch.from_numpy(found.astype(np.uint32).view(np.int32).copy())


Write = Callable[[torch.Tensor], tuple[dict[str, torch.Tensor], torch.Tensor]]
"""A weight [n, k] -> the tensors in its place, by their names below the layer's, and what they
stand for."""


def quantized(
    dense: Path,
    folder: Path,
    write: Write | Callable[[str], Write | None],
    settings: Mapping[str, Any],
    *,
    by_name: bool = False,
    linear: re.Pattern[str] = LINEAR,
    key: str = "quantization_config",
) -> Path:
    """Write the model `dense` with its linear layers quantized to `folder`, and have `dense` stand
    for the same. With `by_name`, each layer as `write` says, which gives None for a plain one."""
    tensors = load_file(dense / SINGLE)
    packed, meant = dict(tensors), dict(tensors)
    for name, weight in tensors.items():
        found = linear.fullmatch(name)
        chosen: Any = write(found[1]) if found and by_name else write  # type: ignore[arg-type]
        if found is None or chosen is None:
            continue
        own, meant[name] = chosen(weight.float())
        del packed[name]
        packed |= {f"{found[1]}.{leaf}": one.clone().contiguous() for leaf, one in own.items()}
    assert packed.keys() != tensors.keys() or any(packed[x] is not tensors[x] for x in packed)
    shutil.copytree(dense, folder)
    save_file(packed, folder / SINGLE, {"format": "pt"})
    save_file(meant, dense / SINGLE, {"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: dict(settings)}))
    return folder


def assert_ranks_have_the_whole(
    method: QuantMethod, tensors: Mapping[str, torch.Tensor], size: Size, cuts: list[Cut]
) -> None:
    """Hold the parts that ranks make of a layer's tensors to those of the whole layer."""
    whole = weight_of(method, tensors, size)
    for one in cuts:
        part = weight_of(method, tensors, size, one)
        slices = {dim: ranges for dim, ranges in enumerate(one) if ranges is not None}
        assert torch.equal(
            part.dense(torch.float32), cut_tensor(whole.dense(torch.float32), slices)
        )


def weight_of(
    method: QuantMethod, tensors: Mapping[str, torch.Tensor], size: Size, cut: Cut | None = None
) -> QuantWeight:
    """What a rank makes of the tensors of a layer, as they are read."""
    cut = cut or Cut()
    slices = method.cut(size, cut)
    read = {leaf: cut_tensor(one, slices.get(leaf, {})) for leaf, one in tensors.items()}
    return method.weight(read, size, cut, torch.float32)
