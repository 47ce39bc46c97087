from __future__ import annotations

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from workers.sampling.penalties import Penalties

V = 300
CPU = torch.device("cpu")


def logits(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * 4


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def apply(penalties: Penalties, scores: torch.Tensor, rows: list[int], length: int) -> torch.Tensor:
    penalized = scores.clone()
    lines = np.arange(len(rows))
    penalties.apply(penalized, lines, array(*rows), np.full(len(rows), length, np.int64))
    return penalized


def transformers_repetition(scores: torch.Tensor, context: list[int], p: float) -> torch.Tensor:
    return RepetitionPenaltyLogitsProcessor(p)(torch.tensor([context]), scores.clone())


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output() -> None:
    penalties = Penalties(4, CPU)
    context = [5, 9, 9, 9, 120]
    penalties.admit(2, 1.3, 0.0, context)
    for token in (7, 9, 299):
        penalties.record(array(2), torch.tensor([token]))
        context.append(token)
    scores = logits()
    expected = transformers_repetition(scores, context, 1.3)
    assert torch.equal(apply(penalties, scores, [2], len(context)), expected)


def test_rows_of_different_lengths_are_penalized_together_as_alone() -> None:
    penalties = Penalties(3, CPU)
    contexts = {0: [4], 1: list(range(200)), 2: [250, 251]}
    for row, context in contexts.items():
        penalties.admit(row, 1.1 + row, 0.0, context)
    scores = logits(3)
    found = apply(penalties, scores, [2, 0, 1], 9)
    for line, row in enumerate([2, 0, 1]):
        expected = transformers_repetition(scores[line : line + 1], contexts[row], 1.1 + row)
        assert torch.equal(found[line : line + 1], expected)


def test_only_the_given_lines_change() -> None:
    penalties = Penalties(2, CPU)
    penalties.admit(1, 2.0, 0.0, [3])
    scores = logits(3)
    penalized = scores.clone()
    penalties.apply(penalized, array(1), array(1), array(1))
    assert torch.equal(penalized[[0, 2]], scores[[0, 2]])
    assert not torch.equal(penalized[1], scores[1])


def test_frequency_penalty_is_the_count_over_the_length_of_the_context() -> None:
    penalties = Penalties(1, CPU)
    penalties.admit(0, 1.0, 0.8, [5, 9, 9, 120])
    penalties.record(array(0), torch.tensor([9]))
    penalties.record(array(0), torch.tensor([7]))
    scores = logits()
    expected = scores.clone()
    for token, count in {5: 1, 9: 3, 120: 1, 7: 1}.items():
        expected[0, token] -= 0.8 * count / 6
    found = apply(penalties, scores, [0], 6)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_a_negative_frequency_penalty_raises_what_occurred() -> None:
    penalties = Penalties(1, CPU)
    penalties.admit(0, 1.0, -2.0, [11])
    scores = logits()
    found = apply(penalties, scores, [0], 1)
    assert found[0, 11].item() == torch.tensor(scores[0, 11].item() + 2.0).item()


def test_the_frequency_penalty_comes_after_the_repetition_penalty() -> None:
    penalties = Penalties(1, CPU)
    penalties.admit(0, 2.0, 1.0, [11])
    scores = torch.zeros(1, V)
    scores[0, 11] = 4.0
    assert apply(penalties, scores, [0], 1)[0, 11].item() == 4.0 / 2.0 - 1.0


def test_a_row_that_is_admitted_again_forgets_its_context() -> None:
    penalties = Penalties(1, CPU)
    penalties.admit(0, 1.5, 0.5, list(range(100)))
    penalties.admit(0, 1.5, 0.0, [1])
    scores = logits()
    assert torch.equal(apply(penalties, scores, [0], 1), transformers_repetition(scores, [1], 1.5))


def test_a_context_outgrows_the_first_allocation() -> None:
    penalties = Penalties(2, CPU)
    context = [3, 4]
    penalties.admit(0, 1.2, 0.0, context)
    penalties.admit(1, 1.2, 0.0, [8])
    for step in range(700):
        token = step * 7 % V
        penalties.record(array(0), torch.tensor([token]))
        context.append(token)
    scores = logits(2)
    found = apply(penalties, scores, [0, 1], len(context))
    assert torch.equal(found[:1], transformers_repetition(scores[:1], context, 1.2))
    assert torch.equal(found[1:], transformers_repetition(scores[1:], [8], 1.2))


def test_a_masked_token_stays_masked() -> None:
    penalties = Penalties(1, CPU)
    penalties.admit(0, 1.5, 0.5, [11])
    scores = logits()
    scores[0, 11] = -torch.inf
    assert apply(penalties, scores, [0], 1)[0, 11] == -torch.inf
