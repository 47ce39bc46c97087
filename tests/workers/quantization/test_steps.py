"""Rounding to steps: nearest, and with feedback."""

from __future__ import annotations

import pytest
import torch

from tests.workers.quantization.folders import matrix
from workers.quantization.steps import (
    Grid,
    Steps,
    nearest_steps,
    relative_error,
    steps_with_feedback,
)

GRIDS = [Grid(4, 32), Grid(4), Grid(8, 32), Grid(8, e4m3=True)]


def together(k: int) -> torch.Tensor:
    """x^T x of inputs that say much of each other."""
    x = matrix(200, 8, 1) @ matrix(8, k, 2) + 0.2 * matrix(200, k, 3)
    return x.t() @ x


@pytest.mark.parametrize("grid", GRIDS)
def test_every_weight_is_rounded_to_the_nearest_step(grid: Grid) -> None:
    weight = matrix(24, 96)
    weight[3] = 0
    found = nearest_steps(weight, grid, torch.bfloat16)
    sizes = found.sizes.float().repeat_interleave(96 // found.sizes.shape[1], 1)
    assert found.sizes.dtype == torch.bfloat16
    there = grid.nearest(torch.linspace(-500, 500, 100_001)).unique()
    assert (there == 0).any()
    best = (weight[..., None] - sizes[..., None] * there).abs().amin(-1)
    assert torch.equal((weight - found.dense).abs(), best)
    assert (found.dense[3] == 0).all()


def test_the_largest_are_clipped_where_that_errs_less() -> None:
    weight = matrix(64, 128)
    weight[:, ::32] *= 1.6
    found = nearest_steps(weight, Grid(4, 32), torch.float32)
    largest = weight.view(64, 4, 32).abs().amax(-1) / 7.5
    whole = Steps(Grid(4).nearest(weight / largest.repeat_interleave(32, 1)), largest)
    off = ((one.dense - weight).square().sum() for one in (found, whole))
    assert next(off) < 0.95 * next(off)


@pytest.mark.parametrize("most_first", [False, True])
@pytest.mark.parametrize("grid", GRIDS)
def test_feedback_changes_outputs_less(grid: Grid, most_first: bool) -> None:
    weight, inputs = matrix(48, 96), together(96)
    found = steps_with_feedback(weight, inputs, grid, torch.float16, 0.01, most_first)
    nearest = nearest_steps(weight, grid, torch.float16)
    assert torch.equal(found.numbers, grid.nearest(found.numbers))
    assert found.sizes.shape == nearest.sizes.shape
    assert found.sizes.dtype == torch.float16
    errors = [relative_error(weight, one.dense, inputs) for one in (found, nearest)]
    assert 0 < errors[0] < 0.7 * errors[1]


def test_an_order_of_inputs_does_not_move_their_weights() -> None:
    """With inputs of which none says anything of another, nothing is fed back."""
    weight = matrix(16, 64)
    inputs = torch.diag(torch.rand(64, generator=torch.Generator().manual_seed(0)) + 0.1)
    grid = Grid(8, 32)
    found = steps_with_feedback(weight, inputs, grid, torch.float32, 0.0, True)
    torch.testing.assert_close(found.dense, nearest_steps(weight, grid, torch.float32).dense)


@pytest.mark.parametrize("inputs", [torch.zeros(64, 64), torch.ones(64, 64)])
def test_inputs_that_were_not_seen_are_rounded_all_the_same(inputs: torch.Tensor) -> None:
    """As of an expert that no token was sent to, or where no damping would be too little."""
    weight = matrix(16, 64)
    found = steps_with_feedback(weight, inputs, Grid(4, 32), torch.float32, 0.0)
    assert (found.dense - weight).square().mean() < 0.05 * weight.square().mean()
    if not inputs.any():
        assert relative_error(weight, found.dense, inputs) == 0
