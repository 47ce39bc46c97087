from __future__ import annotations

import numpy as np
import torch

from workers.sampling.bias import Bias

V = 50
CPU = torch.device("cpu")


def test_each_row_gets_its_own_biases_and_nothing_else_changes() -> None:
    bias = Bias(4, V, CPU)
    bias.admit(3, [1, 49], [-100.0, 2.5])
    bias.admit(0, [1], [100.0])
    scores = torch.randn(3, V, generator=torch.Generator().manual_seed(0))
    expected = scores.clone()
    expected[0, 1] += -100.0
    expected[0, 49] += 2.5
    expected[2, 1] += 100.0
    bias.apply(scores, np.array([0, 2]), np.array([3, 0]))
    assert torch.equal(scores, expected)


def test_a_token_that_the_model_does_not_have_is_left_out() -> None:
    bias = Bias(1, V, CPU)
    bias.admit(0, [V, 3, 2**31 - 1], [1.0, 2.0, 3.0])
    scores = torch.zeros(2, V)
    bias.apply(scores, np.array([0]), np.array([0]))
    assert scores.nonzero().tolist() == [[0, 3]]


def test_a_row_that_is_admitted_again_forgets_its_biases() -> None:
    bias = Bias(1, V, CPU)
    bias.admit(0, [7], [1.0])
    bias.admit(0, [8], [1.0])
    scores = torch.zeros(1, V)
    bias.apply(scores, np.array([0]), np.array([0]))
    assert scores[0, [7, 8]].tolist() == [0.0, 1.0]
