"""The draws follow the distribution, and only a near-tie of the two best can change one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from workers.sampling.exponential_race import add_gumbel_noise, argmax_lowest_id
from workers.sampling.random import Purpose, keys


def keys_of(n: int, seed: int = 1, choice: int = 0) -> Tensor:
    """The keys of one choice of a request at n positions."""
    seeds, choices = (np.full(n, value, np.uint64) for value in (seed, choice))
    return torch.from_numpy(keys(seeds, choices, np.arange(n, dtype=np.uint64), Purpose.TOKEN))


def draws(scores: Tensor, drawn_with: Tensor) -> Tensor:
    """A token per key; `scores` is of one line for all of them, or of one for each."""
    ids = torch.arange(scores.shape[1])[None]
    parts = zip(scores.expand(len(drawn_with), -1).split(2000), drawn_with.split(2000), strict=True)
    return torch.cat([add_gumbel_noise(part, ids, some).argmax(1) for part, some in parts])


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("seed", [1, 2, 2**63])
def test_draws_follow_the_softmax_of_the_scores(seed: int) -> None:
    n = 100_000
    scores = torch.tensor([[0.0, -0.1, -1.0, -2.0, -4.0, -7.0, -0.5, -3.0]])
    counts = draws(scores, keys_of(n, seed)).bincount(minlength=8)
    # 7 degrees of freedom: above 29.9 once in 10,000.
    assert chi_square(counts, n * scores.softmax(1)[0]) < 29.9


def test_all_of_a_vocabulary_is_drawn_evenly_where_scores_are_equal() -> None:
    n, vocab_size, n_bins = 4000, 4096, 64
    tokens = draws(torch.zeros(1, vocab_size), keys_of(n))
    expected = torch.full((n_bins,), n / n_bins)
    # 63 degrees of freedom: above 113 once in 10,000. By neighbourhood, then by low bits.
    assert chi_square((tokens // (vocab_size // n_bins)).bincount(minlength=n_bins), expected) < 113
    assert chi_square((tokens % n_bins).bincount(minlength=n_bins), expected) < 113


def test_a_draw_tells_nothing_of_the_next_position_or_choice_or_of_a_neighbouring_seed() -> None:
    n = 50_000
    scores = torch.tensor([[0.0, -0.3, -1.0, -1.5]])
    probs = scores.softmax(1)[0].double()
    expected = n * torch.outer(probs, probs).flatten()
    first = draws(scores, keys_of(n + 1))
    for other in (
        first[1:],
        draws(scores, keys_of(n, choice=1)),
        draws(scores, keys_of(n, seed=2)),
    ):
        pairs = (first[:n] * 4 + other).bincount(minlength=16)
        # 15 degrees of freedom: above 44.3 once in 10,000.
        assert chi_square(pairs, expected) < 44.3


def test_noise_is_that_of_the_standard_gumbel_distribution() -> None:
    n, n_bins = 400, 50
    noise = add_gumbel_noise(torch.zeros(n, 1000), torch.arange(1000)[None], keys_of(n))
    # Through its distribution function it is even on (0, 1).
    counts = (-(-noise.double()).exp()).exp().histc(n_bins, 0, 1)
    # 49 degrees of freedom: above 94 once in 10,000.
    assert chi_square(counts, torch.full((n_bins,), n * 1000 / n_bins)) < 94


def test_noise_belongs_to_the_token_and_not_to_its_place() -> None:
    scores = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(300, generator=torch.Generator().manual_seed(1))
    whole = add_gumbel_noise(scores, torch.arange(300)[None], keys_of(5))
    assert torch.equal(add_gumbel_noise(scores[:, order], order[None], keys_of(5)), whole[:, order])
    few = order[:7].expand(5, -1)
    assert torch.equal(
        add_gumbel_noise(scores.gather(1, few), few, keys_of(5)), whole.gather(1, few)
    )


def unmixed(word: int) -> int:
    """The word that MurmurHash3's finalizer turns into `word`."""
    word ^= word >> 16
    word = word * pow(0xC2B2AE35, -1, 2**32) % 2**32
    word ^= word >> 13 ^ word >> 26
    word = word * pow(0x85EBCA6B, -1, 2**32) % 2**32
    return word ^ word >> 16


@pytest.mark.parametrize(
    ("word", "chance"),
    [(0, 2.0**-32), (1, 1.5 * 2.0**-31), (2**30, 0.5), (2**31 - 1, 1 - 2.0**-24)],
)
@pytest.mark.parametrize("top_bit", [0, 2**31])
def test_the_noise_of_the_least_and_the_largest_hash_is_exact_and_finite(
    word: int, chance: float, top_bit: int
) -> None:
    # Token 0 under the first word 0 has the second word for its only hash.
    second = torch.tensor(unmixed(word + top_bit), dtype=torch.int64).int()
    key = torch.stack([torch.zeros_like(second), second])[None]
    noise = add_gumbel_noise(torch.zeros(1, 1), torch.zeros(1, 1, dtype=torch.int64), key)
    assert noise.item() == pytest.approx(-math.log(-math.log1p(-chance)), rel=1e-6)


def test_masked_tokens_never_win_against_others() -> None:
    scores = torch.full((1, 1000), -torch.inf)
    scores[0, [3, 700]] = torch.tensor([0.0, -9.0])
    assert set(draws(scores, keys_of(2000)).tolist()) <= {3, 700}


@pytest.mark.parametrize("size", [0.003, 0.03])
@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_noise_on_the_scores_changes_as_many_draws_as_have_a_near_tie(
    size: float, spread: float
) -> None:
    # The two best scores lie within d of each other with probability (1 - sum p**2) d for small
    # d. Normal noise of deviation s on each changes the draw with (1 - sum p**2) s / sqrt(pi).
    n = 20_000
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(1, 500, generator=generator) * spread
    disturbed = scores + size * torch.randn(n, 500, generator=generator)
    changed = int((draws(scores, keys_of(n)) != draws(disturbed, keys_of(n))).sum())
    rate = (1 - scores.softmax(1).square().sum().item()) * size / math.sqrt(math.pi)
    # Four deviations of the count.
    assert abs(changed - n * rate) < 4 * math.sqrt(n * rate)


def test_of_equals_the_lowest_id_wins_wherever_it_stands() -> None:
    values = torch.tensor([[1.0, 5.0, 5.0, 5.0], [7.0, 5.0, 5.0, 5.0], [-torch.inf] * 4])
    ids = torch.tensor([[9, 30, 2, 4], [9, 30, 2, 4], [9, 30, 2, 4]])
    assert argmax_lowest_id(values, ids).tolist() == [[2], [0], [2]]
