"""The maximum of each row, as torch finds it."""

from __future__ import annotations

import pytest
import torch

from workers.sampling.argmax import max_and_argmax


@pytest.mark.parametrize("shape", [(1, 1), (1, 49152), (3, 17), (16, 1000), (65, 31)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_torchs(shape: tuple[int, int], dtype: torch.dtype) -> None:
    scores = torch.randperm(shape[0] * shape[1]).reshape(shape).sub(500).to(dtype)
    values, places = max_and_argmax(scores)
    assert torch.equal(values, scores.amax(1))
    assert torch.equal(scores.gather(1, places[:, None])[:, 0], values)


def test_of_equals_the_first_is_taken() -> None:
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [-1.0, -1.0, -5.0, -1.0]])
    assert max_and_argmax(scores)[1].tolist() == [1, 0]


def test_infinity_and_nan_show_and_harm_nobody_else() -> None:
    scores = torch.zeros(4, 100)
    scores[0, 7] = torch.nan
    scores[1, 8] = torch.inf
    scores[2] = -torch.inf
    scores[3, 9] = 1.0
    values, places = max_and_argmax(scores)
    assert values[0].isnan()
    assert values[1:].tolist() == [torch.inf, -torch.inf, 1.0]
    assert places[1] == 8
    assert places[3] == 9
    assert ((places >= 0) & (places < 100)).all()


def test_rows_that_lie_apart() -> None:
    scores = torch.randn(5, 64)[:, ::2]
    values, places = max_and_argmax(scores)
    assert torch.equal(values, scores.max(1).values)
    assert torch.equal(places, scores.argmax(1))
