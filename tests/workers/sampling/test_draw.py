"""The draws of the kernel are those of torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from workers.native import NativeUnavailable, kernels
from workers.sampling.draw import DRAWS, REPORTS, Draws, draw_rows
from workers.sampling.exponential_race import add_gumbel_noise
from workers.sampling.masking import Allowed, mask_out


@pytest.fixture(autouse=True)
def available() -> None:
    try:
        kernels()
    except NativeUnavailable as error:
        pytest.skip(str(error))


def draws_of(n: int, temperatures: list[float], seed: int = 0) -> Draws:
    draw = np.random.default_rng(seed)
    keys = draw.integers(-(2**31), 2**31, (n, 2), np.int64).astype(np.int32)
    heat = np.asarray([temperatures[i % len(temperatures)] for i in range(n)], np.float32)
    return Draws(np.full(n, DRAWS | REPORTS, np.uint8), heat, keys)


def as_torch_draws(
    scores: torch.Tensor, draws: Draws, allowed: Allowed | None
) -> tuple[torch.Tensor, torch.Tensor]:
    scores = scores.clone()
    if allowed is not None:
        mask_out(scores, allowed)
    scores -= scores.amax(1, keepdim=True)
    scores /= torch.from_numpy(draws.temperatures)[:, None]
    ids = torch.arange(scores.shape[1])[None]
    tokens = add_gumbel_noise(scores, ids, torch.from_numpy(draws.keys)).argmax(1)
    return tokens, scores.log_softmax(1).gather(1, tokens[:, None])[:, 0]


def check(scores: torch.Tensor, draws: Draws, allowed: Allowed | None = None) -> torch.Tensor:
    found = draw_rows(scores, draws, allowed)
    assert found is not None
    tokens, peaks, logprobs = found
    due, due_logprobs = as_torch_draws(scores, draws, allowed)
    assert torch.equal(tokens, due)
    torch.testing.assert_close(logprobs, due_logprobs, atol=2e-5, rtol=1e-5)
    if allowed is None:
        assert torch.equal(peaks, scores.amax(1))
    return tokens


@pytest.mark.parametrize("width", [1, 31, 32, 33, 1000, 49152])
@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_tokens_and_logprobs_are_torchs(width: int, spread: float) -> None:
    torch.manual_seed(width)
    n = 400 if width < 10_000 else 60
    scores = torch.randn(n, width) * spread
    draws = draws_of(n, [1.0, 0.7, 0.1, 3.0, 50.0, 1e-6], seed=width)
    tokens = check(scores, draws)
    if width > 900 and spread < 2:
        assert len(set(tokens.tolist())) > n // 2


def test_a_hot_row_draws_evenly() -> None:
    n, width = 4000, 40
    tokens = check(torch.zeros(n, width), draws_of(n, [1.0]))
    counts = torch.bincount(tokens, minlength=width).float()
    assert counts.min() > 60
    assert counts.max() < 150


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_masks(share: float) -> None:
    n, width = 40, 5000
    draw = np.random.default_rng(1)
    lines = np.asarray([0, 3, 4, 17, 39])
    kept = draw.random((len(lines), width)) < share
    kept[:, 77] = True
    padded = np.zeros((len(lines), -(-width // 32) * 32), bool)
    padded[:, :width] = kept
    bits = np.packbits(padded, axis=1, bitorder="little").view(np.int32)
    tokens = check(torch.randn(n, width) * 4, draws_of(n, [0.8, 2.0]), Allowed(lines, bits))
    assert all(kept[at, tokens[line]] for at, line in enumerate(lines))


def test_rows_that_do_not_draw_have_the_likeliest() -> None:
    scores = torch.randn(6, 300)
    draws = draws_of(6, [1.0])
    draws.needs[:] = [REPORTS, 0, DRAWS, REPORTS, 0, DRAWS]
    found = draw_rows(scores, draws, None)
    assert found is not None
    tokens, _, logprobs = found
    best = scores.argmax(1)
    for row in (0, 1, 3, 4):
        assert tokens[row] == best[row]
    due = scores.log_softmax(1).amax(1)
    torch.testing.assert_close(logprobs[[0, 3]], due[[0, 3]])


def test_a_row_says_the_same_alone_and_among_others() -> None:
    scores, draws = torch.randn(9, 2000), draws_of(9, [0.9])
    needs, heat, keys = draws
    together = draw_rows(scores, draws, None)
    assert together is not None
    for row in range(9):
        at = slice(row, row + 1)
        alone = draw_rows(scores[at], Draws(needs[at], heat[at], keys[at]), None)
        assert alone is not None
        assert all(torch.equal(a, b[at]) for a, b in zip(alone, together, strict=True))


def test_infinity_and_nan_show_and_harm_nobody_else() -> None:
    scores = torch.zeros(4, 100)
    scores[0, 7] = torch.nan
    scores[1, 8] = torch.inf
    scores[2] = -torch.inf
    scores[3, 9] = 50.0
    found = draw_rows(scores, draws_of(4, [1.0]), None)
    assert found is not None
    tokens, peaks, _ = found
    assert peaks[0].isnan()
    assert peaks[1:].tolist() == [torch.inf, -torch.inf, 50.0]
    assert tokens[3] == 9
    assert ((tokens >= 0) & (tokens < 100)).all()


def test_what_the_kernel_does_not_take() -> None:
    scores = torch.zeros(2, 64)
    assert draw_rows(scores.bfloat16(), draws_of(2, [1.0]), None) is None
    assert draw_rows(scores[:, ::2], draws_of(2, [1.0]), None) is None
