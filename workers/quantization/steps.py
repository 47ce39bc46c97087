"""Round weights to steps, each group of inputs to steps of a size of its own.

`nearest_steps` rounds each weight for itself. `steps_with_feedback` rounds one input after the
other, and lets the weights of those that follow make up for what each rounding did to the layer's
outputs: GPTQ (Frantar et al., 2022), which needs to know how inputs go together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

E4M3 = torch.float8_e4m3fn
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
"""Of four bits: how large the largest weight of a group is taken to be. Beyond it the largest are
clipped, and all others have finer steps; what errs least is taken."""
BLOCK = 128
"""Inputs after which the weights of all others are corrected at once."""
VALUES = 2**22
"""Weights that are rounded at a time."""
MOST_DAMPING = 1.0


@dataclass(frozen=True, slots=True)
class Grid:
    """The numbers of steps that there are, and how many inputs have steps of one size."""

    bits: int
    group: int = 0
    """Inputs; 0: all of a row."""
    e4m3: bool = False
    """Numbers of steps are e4m3; else integers, as many below 0 as not."""

    @property
    def most(self) -> float:
        """The number of steps of the largest weight of a group."""
        return float(torch.finfo(E4M3).max) if self.e4m3 else 2 ** (self.bits - 1) - 0.5

    def nearest(self, x: torch.Tensor) -> torch.Tensor:
        """Return the nearest numbers of steps, as float32."""
        if self.e4m3:
            return x.clamp(-self.most, self.most).to(E4M3).float()
        half = 2 ** (self.bits - 1)
        return x.round().clamp_(-half, half - 1)

    def sizes(
        self, groups: torch.Tensor, importance: torch.Tensor, dtype: torch.dtype
    ) -> torch.Tensor:
        """Return the size of steps of each group: float32 [..., groups, size] -> [..., groups, 1],
        float32 numbers that `dtype` has.

        `importance` [groups, size] is what a squared error of each input counts.
        """
        largest = groups.abs().amax(-1, keepdim=True)
        best = _some(largest / self.most, dtype)
        if self.e4m3 or self.bits > 4:
            return best
        least = torch.full_like(best, torch.inf)
        for shrink in SHRINKS:
            size = _some(largest * (shrink / self.most), dtype)
            error = (self.nearest(groups / size) * size - groups).square_().mul_(importance)
            total = error.sum(-1, keepdim=True)
            best = torch.where(total < least, size, best)
            least = torch.minimum(total, least)
        return best


class Steps(NamedTuple):
    """A weight as numbers of steps, and their sizes."""

    numbers: torch.Tensor
    """float32 [n, k]."""
    sizes: torch.Tensor
    """[n, groups], of the dtype that was asked for."""

    @property
    def dense(self) -> torch.Tensor:
        """float32 [n, k]: what they stand for."""
        n, k = self.numbers.shape
        groups = self.numbers.view(n, self.sizes.shape[1], -1)
        return (groups * self.sizes.float()[..., None]).view(n, k)


def nearest_steps(weight: torch.Tensor, grid: Grid, dtype: torch.dtype) -> Steps:
    """Round each weight of [n, k] to the nearest; sizes of steps are of `dtype`."""
    k = weight.shape[1]
    group = grid.group or k
    even = weight.new_ones((1, 1), dtype=torch.float32)
    numbers, sizes = [], []
    for some in weight.split(max(1, VALUES // k)):
        groups = some.float().view(len(some), -1, group)
        size = grid.sizes(groups, even, dtype)
        numbers.append(grid.nearest(groups / size).view(-1, k))
        sizes.append(size[..., 0].to(dtype))
    return Steps(torch.cat(numbers), torch.cat(sizes))


def steps_with_feedback(
    weight: torch.Tensor,
    inputs: torch.Tensor,
    grid: Grid,
    dtype: torch.dtype,
    damping: float,
    most_first: bool = False,
) -> Steps:
    """Round a weight [n, k] so that the outputs of a layer change least.

    `inputs` float32 [k, k] is x^T x over the inputs [.., k] that were seen. `damping`, times the
    mean of its diagonal, is added to that; ten times as much and more, where it cannot be inverted.
    With `most_first`, the inputs that matter most are rounded first, and the sizes of steps are
    those of the weight as it was.
    """
    n, k = weight.shape
    group = grid.group or k
    rows = weight.float().t().contiguous()  # a row is an input
    power = inputs.diagonal()
    mean = power.mean().clamp(min=torch.finfo(torch.float32).tiny)
    importance = (power / mean + damping).view(-1, group)
    sizes = weight.new_empty((k // group, n), dtype=torch.float32)
    ahead = most_first or group == k
    if ahead:
        sizes = grid.sizes(weight.float().view(n, -1, group), importance, dtype)[..., 0].t()
    order = torch.arange(k, device=weight.device)
    if most_first:
        order = power.argsort(descending=True, stable=True)
        rows, inputs = rows[order], inputs[order][:, order]
    feedback = _feedback(inputs / mean, damping)
    numbers = torch.empty_like(rows)
    step = BLOCK if ahead else group
    of_group = (order // group).tolist()
    for start in range(0, k, step):
        end = min(start + step, k)
        block = rows[start:end]
        errors = torch.empty_like(block)
        if not ahead:
            at = start // group
            sizes[at] = grid.sizes(block.t()[:, None], importance[at], dtype)[:, 0, 0]
        for at in range(end - start):
            size = sizes[of_group[start + at]]
            number = grid.nearest(block[at] / size)
            numbers[start + at] = number
            errors[at] = (block[at] - number * size) / feedback[start + at, start + at]
            row = feedback[start + at, start + at + 1 : end]
            block[at + 1 :] -= row[:, None] * errors[at]
        rows[end:] -= feedback[start:end, end:].t() @ errors
    placed = torch.empty_like(numbers)
    placed[order] = numbers
    return Steps(placed.t().contiguous(), sizes.t().to(dtype).contiguous())


def relative_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    """Return what of a layer's outputs, squared and summed, rounding its weight changes."""
    weight = weight.float()
    off = weight - rounded
    whole = float(((weight @ inputs) * weight).sum())
    return float(((off @ inputs) * off).sum()) / whole if whole > 0 else 0.0


def _some(size: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Sizes of steps, rounded to a dtype; 1 for groups of zeros."""
    rounded = size.to(dtype).float()
    return torch.where(rounded == 0, 1.0, rounded)


def _feedback(inputs: torch.Tensor, damping: float) -> torch.Tensor:
    """Return the upper Cholesky factor of the inverse of `inputs`, damped in place until it has
    one."""
    diagonal = inputs.diagonal()
    added = 0.0
    while True:
        diagonal.add_(damping - added)
        added = damping
        found, failed = torch.linalg.cholesky_ex(inputs)
        if not failed:
            found = torch.cholesky_inverse(found)
            found, failed = torch.linalg.cholesky_ex(found, upper=True)
            if not failed and bool(found.isfinite().all()):
                factor: torch.Tensor = found
                return factor
        if damping >= MOST_DAMPING:
            return torch.eye(len(inputs), dtype=inputs.dtype, device=inputs.device)
        damping = max(10 * damping, 1e-3)
