"""Tokens that a grammar does not allow are never sampled, whatever else a row asks for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Sampling
from workers.sampling import Allowed, Sampler
from workers.sampling.masking import mask_out, masked_argmax

VOCABULARY = 1000  # not a multiple of 32
CPU = torch.device("cpu")


def bits_of(allowed: NDArray[np.bool_]) -> NDArray[np.int32]:
    """bool [m, V] as int32 [m, words]."""
    padded = np.zeros((len(allowed), -(-VOCABULARY // 32) * 32), np.bool_)
    padded[:, :VOCABULARY] = allowed
    return np.packbits(padded, axis=1, bitorder="little").view(np.int32)


def random_masks(n: int, share: float, seed: int) -> NDArray[np.bool_]:
    random = np.random.default_rng(seed)
    masks = random.random((n, VOCABULARY)) < share
    masks[:, random.integers(VOCABULARY)] = True
    return masks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999, 1.0])
def test_the_largest_allowed_score_is_found(dtype: torch.dtype, share: float) -> None:
    scores = torch.randn(5, VOCABULARY).to(dtype)
    masks = random_masks(3, share, 1)
    lines = np.asarray([4, 0, 2])
    values, places = masked_argmax(scores, Allowed(lines, bits_of(masks)))
    for line, mask, value, place in zip(lines, masks, values, places, strict=True):
        due = scores[line].float().masked_fill(~torch.from_numpy(mask), -math.inf)
        assert value == due.max()
        assert mask[place]
        assert due[place] == due.max()


def test_broken_scores_are_reported() -> None:
    scores = torch.randn(2, VOCABULARY)
    scores[1, 700] = math.nan
    masks = np.ones((2, VOCABULARY), np.bool_)
    values, _ = masked_argmax(scores, Allowed(np.asarray([0, 1]), bits_of(masks)))
    assert math.isfinite(values[0])
    assert math.isnan(values[1])
    nothing = np.zeros((1, VOCABULARY), np.bool_)
    values, _ = masked_argmax(scores, Allowed(np.asarray([0]), bits_of(nothing)))
    assert values[0] == -math.inf


def test_only_the_masked_lines_change() -> None:
    scores = torch.randn(4, VOCABULARY)
    before = scores.clone()
    masks = random_masks(2, 0.3, 2)
    mask_out(scores, Allowed(np.asarray([1, 3]), bits_of(masks)))
    assert torch.equal(scores[[0, 2]], before[[0, 2]])
    due = before[[1, 3]].masked_fill(~torch.from_numpy(masks), -math.inf)
    assert torch.equal(scores[[1, 3]], due)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(logprobs=True),
        Sampling(do_sample=True, temperature=3.0, seed=1),
        Sampling(do_sample=True, temperature=0.5, top_k=5, seed=2, logprobs=True),
        Sampling(do_sample=True, top_p=0.5, typical_p=0.5, seed=3),
        Sampling(do_sample=True, min_p=0.2, seed=4, top_n_tokens=3),
        Sampling(repetition_penalty=1.5, frequency_penalty=0.3),
        Sampling(watermark=True),
        Sampling(biased_ids=[1], biases=[100.0], model_logprobs=True, logprobs=True),
    ],
)
def test_every_way_of_sampling_keeps_to_what_is_allowed(sampling: Sampling) -> None:
    sampler = Sampler(3, VOCABULARY, CPU)
    for row in range(3):
        sampler.admit(row, sampling, [5, 6, 7])
    masks = random_masks(2, 0.004, 5)
    masks[:, 1] = False
    for step in range(40):
        logits = 4 * torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(step))
        allowed = Allowed(np.asarray([0, 2]), bits_of(masks))
        rows, positions = [0, 1, 2], [3 + step] * 3
        output = sampler.sample(rows, positions, logits, allowed)
        sampled, errors = output.to_wire(rows)
        assert not errors
        assert masks[0, sampled[0].tokens[0]]
        assert masks[1, sampled[2].tokens[0]]
        free = sampler.sample([1], positions[1:2], logits[1:2])
        remembers = sampling.repetition_penalty > 1 or sampling.watermark
        assert remembers or free.tokens[0] == sampled[1].tokens[0]
        for one in sampled:
            assert all(math.isfinite(x) and x <= 0 for x in one.logprobs)
