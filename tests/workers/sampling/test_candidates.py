from __future__ import annotations

import pytest
import torch

from workers.sampling.candidates import candidates


def random_scores(n: int, vocab_size: int) -> torch.Tensor:
    return torch.randn(n, vocab_size, generator=torch.Generator().manual_seed(vocab_size))


def by_hand(scores: torch.Tensor) -> list[list[int]]:
    return [sorted(range(len(line)), key=lambda i: (-line[i], i)) for line in scores.tolist()]


@pytest.mark.parametrize("width", [1, 5, 64, 1000])
@pytest.mark.parametrize("vocab_size", [37, 1000, 1600, 2011])
def test_the_likeliest_come_first(width: int, vocab_size: int) -> None:
    scores = random_scores(3, vocab_size)
    found = candidates(scores, width)
    expected = [line[:width] for line in by_hand(scores)]
    assert found.ids.tolist() == expected
    assert torch.equal(found.scores, scores.gather(1, found.ids))


def test_equal_scores_come_by_rising_id() -> None:
    scores = (random_scores(4, 500) * 2).round()
    assert candidates(scores, 500).ids.tolist() == by_hand(scores)


def test_equal_scores_above_the_last_are_all_there_and_come_by_rising_id() -> None:
    scores = (random_scores(4, 5000) * 20).round()
    found = candidates(scores, 64)
    for ids, values, expected in zip(found.ids, found.scores, by_hand(scores), strict=True):
        above = int((values > values[-1]).sum())
        assert above > 0
        assert ids[:above].tolist() == expected[:above]


def test_masked_tokens_come_last() -> None:
    scores = random_scores(1, 100)
    scores[0, 10:] = -torch.inf
    assert sorted(candidates(scores, 100).ids[0, :10].tolist()) == list(range(10))
