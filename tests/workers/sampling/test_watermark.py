from __future__ import annotations

import numpy as np
import torch

from workers.sampling.watermark import DELTA, GAMMA, Watermark, green

V = 8000
CPU = torch.device("cpu")


def test_the_previous_token_alone_decides_what_is_green() -> None:
    lists = green(torch.tensor([3, 4, 3]), V)
    assert torch.equal(lists[0], lists[2])
    assert not torch.equal(lists[0], lists[1])


def test_half_of_the_vocabulary_is_green_after_every_token() -> None:
    share = green(torch.arange(200), V).float().mean(1)
    # Six standard deviations of a fair coin thrown V times.
    assert ((share - GAMMA).abs() < 6 * 0.5 / V**0.5).all()


def test_every_token_is_green_after_half_of_the_tokens() -> None:
    share = green(torch.arange(2000), V).float().mean(0)
    assert ((share - GAMMA).abs() < 6 * 0.5 / 2000**0.5).all()


def test_green_lists_of_two_tokens_agree_on_half_of_the_vocabulary() -> None:
    lists = green(torch.arange(100), V)
    agreement = (lists[:-1] == lists[1:]).float().mean(1)
    assert ((agreement - 0.5).abs() < 6 * 0.5 / V**0.5).all()


def test_green_tokens_are_raised_by_delta_and_others_left() -> None:
    watermark = Watermark(4, CPU)
    watermark.admit(2, [8, 9, 10])
    scores = torch.zeros(3, V)
    watermark.apply(scores, np.array([1]), np.array([2]))
    assert torch.equal(scores[1], green(torch.tensor([10]), V)[0] * DELTA)
    assert not scores[[0, 2]].any()


def test_a_sampled_token_seeds_the_next_list() -> None:
    watermark = Watermark(2, CPU)
    watermark.admit(0, [1])
    watermark.admit(1, [2])
    watermark.record(np.array([1, 0]), torch.tensor([50, 60]))
    scores = torch.zeros(2, V)
    watermark.apply(scores, np.arange(2), np.arange(2))
    assert torch.equal(scores, green(torch.tensor([60, 50]), V) * DELTA)
