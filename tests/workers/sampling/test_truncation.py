"""Each warper against transformers', and the draw against the distribution."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessor,
    MinPLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from workers.sampling.candidates import candidates
from workers.sampling.random import Purpose, keys
from workers.sampling.truncation import Drawn, TruncationLimits, draw

V = 600


def scores_of(n: int, spread: float = 2.5, seed: int = 0) -> torch.Tensor:
    """Distinct scores with each line's largest 0."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, V, generator=generator) * spread
    return scores - scores.amax(1, keepdim=True)


def keys_of(n: int, seed: int = 1) -> torch.Tensor:
    positions = np.arange(n, dtype=np.uint64)
    zeros = np.zeros_like(positions)
    return torch.from_numpy(keys(zeros + np.uint64(seed), zeros, positions, Purpose.TOKEN))


def drawn(
    scores: torch.Tensor,
    *,
    top_k: int = V,
    top_p: float = 1.0,
    typical_p: float = 1.0,
    min_p: float = 0.0,
    width: int = V,
    top_n: int = V,
) -> Drawn:
    n = len(scores)
    limits = TruncationLimits(
        truncates=torch.ones(n, dtype=torch.bool),
        top_k=torch.full((n,), top_k),
        top_p=torch.full((n,), top_p, dtype=torch.float64),
        typical_p=torch.full((n,), typical_p, dtype=torch.float64),
        min_score=torch.full((n,), min_p, dtype=torch.float64).log(),
        top_n=torch.full((n,), top_n),
        log_total=scores.double().logsumexp(1),
    )
    found = candidates(scores, width)
    return draw(
        found,
        limits,
        keys_of(n),
        V,
        typical=typical_p < 1,
        most_top=min(top_n, width),
    )


def transformers_logprobs(scores: torch.Tensor, warpers: Sequence[LogitsProcessor]) -> torch.Tensor:
    for warper in warpers:
        scores = warper(None, scores)
    return scores.log_softmax(1)


def assert_same_distribution(found: Drawn, expected: torch.Tensor) -> None:
    """The reported tokens are those of finite log-probability, with that log-probability."""
    for i, count in enumerate(found.top_counts.tolist()):
        ids = found.top_ids[i, :count]
        assert set(ids.tolist()) == set(expected[i].isfinite().nonzero()[:, 0].tolist())
        torch.testing.assert_close(
            found.top_logprobs[i, :count], expected[i, ids], rtol=0, atol=2e-5
        )
        token = found.tokens[i]
        torch.testing.assert_close(found.logprobs[i], expected[i, token], rtol=0, atol=2e-5)


@pytest.mark.parametrize("min_p", [0.001, 0.1, 0.9, 1.0])
def test_min_p_is_that_of_transformers(min_p: float) -> None:
    scores = scores_of(20)
    expected = transformers_logprobs(scores, [MinPLogitsWarper(min_p)])
    assert_same_distribution(drawn(scores, min_p=min_p), expected)


def test_min_p_comes_after_top_p_and_before_typical_p() -> None:
    scores = scores_of(20)
    warpers = [TopPLogitsWarper(0.9), MinPLogitsWarper(0.05), TypicalLogitsWarper(0.5)]
    found = drawn(scores, top_p=0.9, min_p=0.05, typical_p=0.5)
    assert_same_distribution(found, transformers_logprobs(scores, warpers))


@pytest.mark.parametrize("top_k", [1, 2, 50, V - 1])
def test_top_k_is_that_of_transformers(top_k: int) -> None:
    scores = scores_of(8)
    expected = transformers_logprobs(scores, [TopKLogitsWarper(top_k)])
    assert_same_distribution(drawn(scores, top_k=top_k), expected)


def test_top_k_keeps_ties_with_the_kth_as_transformers_does() -> None:
    scores = scores_of(8).round()
    expected = transformers_logprobs(scores, [TopKLogitsWarper(10)])
    assert (expected.isfinite().sum(1) > 10).any()
    assert_same_distribution(drawn(scores, top_k=10), expected)


@pytest.mark.parametrize("top_p", [0.001, 0.5, 0.9, 0.999])
def test_top_p_is_that_of_transformers(top_p: float) -> None:
    scores = scores_of(8)
    expected = transformers_logprobs(scores, [TopPLogitsWarper(top_p)])
    assert_same_distribution(drawn(scores, top_p=top_p), expected)


@pytest.mark.parametrize("typical_p", [0.05, 0.5, 0.9, 0.99])
def test_typical_p_is_that_of_transformers(typical_p: float) -> None:
    scores = scores_of(8)
    expected = transformers_logprobs(scores, [TypicalLogitsWarper(typical_p)])
    assert_same_distribution(drawn(scores, typical_p=typical_p), expected)


def test_all_three_follow_one_another_as_in_transformers() -> None:
    scores = scores_of(8, spread=1.5)
    warpers = [TopKLogitsWarper(80), TopPLogitsWarper(0.9), TypicalLogitsWarper(0.6)]
    found = drawn(scores, top_k=80, top_p=0.9, typical_p=0.6)
    assert_same_distribution(found, transformers_logprobs(scores, warpers))


def test_masked_tokens_are_neither_drawn_nor_reported() -> None:
    scores = scores_of(1)
    scores[0, scores[0] < 0] = -torch.inf
    found = drawn(scores, top_k=20)
    assert found.top_counts.tolist() == [1]
    assert found.tokens[0] == scores[0].argmax()


@pytest.mark.parametrize(
    "limits", [{"top_k": 20}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.8, "typical_p": 0.7}]
)
def test_few_candidates_give_exactly_what_all_give_or_say_that_they_do_not(
    limits: dict[str, float],
) -> None:
    sharp, flat = scores_of(40, spread=3.0), scores_of(40, spread=0.1)
    # Coarse scores tie, also at the edge of the candidates.
    scores = torch.cat([sharp, flat, (sharp * 4).round() / 4])
    few, every = (drawn(scores, width=width, top_n=5, **limits) for width in (64, V))  # type: ignore[arg-type]
    assert every.complete.all()
    assert few.complete.any()
    for mine, whole in zip(few, every, strict=True):
        assert torch.equal(mine[few.complete], whole[few.complete])
    if "top_k" not in limits:
        assert not few.complete.all()


def test_ties_at_the_edge_of_the_candidates_count_as_incomplete() -> None:
    scores = torch.full((1, V), -50.0)
    scores[0, :40] = 0.0
    assert not drawn(scores, top_k=30, width=32, top_n=1).complete.any()
    assert drawn(scores, top_k=30, width=64, top_n=1).complete.all()


def test_top_p_of_a_top_k_beyond_the_candidates_counts_as_incomplete() -> None:
    scores = scores_of(8)
    assert not drawn(scores, top_k=100, top_p=0.1, width=64, top_n=1).complete.any()
    assert drawn(scores, top_k=50, top_p=0.1, width=64, top_n=1).complete.all()


def test_draws_follow_the_truncated_distribution() -> None:
    n = 20_000
    scores = scores_of(1)
    expected = transformers_logprobs(scores, [TopKLogitsWarper(12)])[0].exp()
    found = drawn(scores.expand(n, -1).contiguous(), top_k=12, width=32, top_n=1)
    counts = torch.bincount(found.tokens, minlength=V)
    assert counts[expected == 0].sum() == 0
    kept = expected > 0
    chi = ((counts - n * expected) ** 2 / (n * expected))[kept].sum()
    # 11 degrees of freedom: above 38 once in 10,000.
    assert chi < 38


@pytest.mark.parametrize(
    "limits",
    [{"top_k": 20}, {"top_p": 0.7}, {"min_p": 0.02}, {"typical_p": 0.7}, {"width": 64}],
)
def test_truncation_changes_no_draw_but_those_that_it_cuts(limits: dict[str, float]) -> None:
    scores = scores_of(2000)
    whole = drawn(scores, top_n=1)
    few = drawn(scores, **{"top_n": V, **limits})  # type: ignore[arg-type]
    reported = torch.arange(few.top_ids.shape[1]) < few.top_counts[:, None]
    kept = ((few.top_ids == whole.tokens[:, None]) & reported).any(1)
    assert kept.any()
    assert not kept.all()
    assert torch.equal(few.tokens[kept], whole.tokens[kept])
    assert (few.tokens != whole.tokens)[~kept].all()
