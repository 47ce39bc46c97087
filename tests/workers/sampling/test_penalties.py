from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import RepetitionPenaltyLogitsProcessor

from tgi_async.wire.messages import Sampling
from workers.sampling.penalties import Penalties

V = 300
CPU = torch.device("cpu")


def logits(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * 4


def array(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def admit(
    penalties: Penalties, row: int, repetition: float, frequency: float, context: list[int]
) -> None:
    asked = Sampling(repetition_penalty=repetition, frequency_penalty=frequency)
    penalties.admit(row, asked, context, len(context))


def apply(penalties: Penalties, scores: torch.Tensor, rows: list[int], length: int) -> torch.Tensor:
    penalized = scores.clone()
    lines = np.arange(len(rows))
    penalties.apply(penalized, lines, array(*rows), np.full(len(rows), length, np.int64))
    return penalized


def transformers_repetition(scores: torch.Tensor, context: list[int], p: float) -> torch.Tensor:
    penalize: Callable[..., torch.Tensor] = RepetitionPenaltyLogitsProcessor(p)
    return penalize(torch.tensor([context]), scores.clone())


def test_repetition_penalty_is_that_of_transformers_over_prompt_and_output() -> None:
    penalties = Penalties(4, CPU)
    context = [5, 9, 9, 9, 120]
    admit(penalties, 2, 1.3, 0.0, context)
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
        admit(penalties, row, 1.1 + row, 0.0, context)
    scores = logits(3)
    found = apply(penalties, scores, [2, 0, 1], 9)
    for line, row in enumerate([2, 0, 1]):
        expected = transformers_repetition(scores[line : line + 1], contexts[row], 1.1 + row)
        assert torch.equal(found[line : line + 1], expected)


def test_only_the_given_lines_change() -> None:
    penalties = Penalties(2, CPU)
    admit(penalties, 1, 2.0, 0.0, [3])
    scores = logits(3)
    penalized = scores.clone()
    penalties.apply(penalized, array(1), array(1), array(1))
    assert torch.equal(penalized[[0, 2]], scores[[0, 2]])
    assert not torch.equal(penalized[1], scores[1])


def test_frequency_penalty_is_the_count_over_the_length_of_the_context() -> None:
    penalties = Penalties(1, CPU)
    admit(penalties, 0, 1.0, 0.8, [5, 9, 9, 120])
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
    admit(penalties, 0, 1.0, -2.0, [11])
    scores = logits()
    found = apply(penalties, scores, [0], 1)
    assert found[0, 11].item() == torch.tensor(scores[0, 11].item() + 2.0).item()


def test_the_frequency_penalty_comes_after_the_repetition_penalty() -> None:
    penalties = Penalties(1, CPU)
    admit(penalties, 0, 2.0, 1.0, [11])
    scores = torch.zeros(1, V)
    scores[0, 11] = 4.0
    assert apply(penalties, scores, [0], 1)[0, 11].item() == 4.0 / 2.0 - 1.0


def test_a_row_that_is_admitted_again_forgets_its_context() -> None:
    penalties = Penalties(1, CPU)
    admit(penalties, 0, 1.5, 0.5, list(range(100)))
    admit(penalties, 0, 1.5, 0.0, [1])
    scores = logits()
    assert torch.equal(apply(penalties, scores, [0], 1), transformers_repetition(scores, [1], 1.5))


def test_a_context_outgrows_the_first_allocation() -> None:
    penalties = Penalties(2, CPU)
    context = [3, 4]
    admit(penalties, 0, 1.2, 0.0, context)
    admit(penalties, 1, 1.2, 0.0, [8])
    for step in range(700):
        token = step * 7 % V
        penalties.record(array(0), torch.tensor([token]))
        context.append(token)
    scores = logits(2)
    found = apply(penalties, scores, [0, 1], len(context))
    assert torch.equal(found[:1], transformers_repetition(scores[:1], context, 1.2))
    assert torch.equal(found[1:], transformers_repetition(scores[1:], [8], 1.2))


def test_a_row_is_admitted_after_a_text_has_outgrown_the_first_allocation() -> None:
    penalties = Penalties(2, CPU)
    admit(penalties, 0, 1.3, 0.0, list(range(255)))
    with torch.inference_mode():
        for token in (255, 256):
            penalties.record(array(0), torch.tensor([token]))
    admit(penalties, 1, 1.3, 0.0, [3])
    scores = logits()
    expected = transformers_repetition(scores, [3], 1.3)
    assert torch.equal(apply(penalties, scores, [1], 1), expected)


def test_a_masked_token_stays_masked() -> None:
    penalties = Penalties(1, CPU)
    admit(penalties, 0, 1.5, 0.5, [11])
    scores = logits()
    scores[0, 11] = -torch.inf
    assert apply(penalties, scores, [0], 1)[0, 11] == -torch.inf


def openais_penalties(
    scores: torch.Tensor, output: list[int], frequency: float, presence: float
) -> torch.Tensor:
    """mu[j] - c[j] * alpha_frequency - float(c[j] > 0) * alpha_presence, as OpenAI puts it."""
    expected = scores.clone()
    for token in range(V):
        count = output.count(token)
        expected[0, token] -= count * frequency + (count > 0) * presence
    return expected


def test_openais_penalties_are_over_the_output_alone() -> None:
    penalties = Penalties(2, CPU)
    asked = Sampling(output_frequency_penalty=0.7, output_presence_penalty=-1.5)
    prompt, output = [5, 9, 9, 120], [9, 9, 7, 120, 120, 120]
    penalties.admit(1, asked, prompt, len(prompt))
    scores = logits()
    assert torch.equal(apply(penalties, scores, [1], 4), scores)
    for token in output:
        penalties.record(array(1), torch.tensor([token]))
    expected = openais_penalties(scores, output, 0.7, -1.5)
    torch.testing.assert_close(apply(penalties, scores, [1], 10), expected, rtol=0, atol=1e-6)


def test_a_row_that_comes_back_knows_its_output_from_its_prompt() -> None:
    asked = Sampling(
        repetition_penalty=1.2,
        frequency_penalty=0.4,
        output_frequency_penalty=0.7,
        output_presence_penalty=0.3,
    )
    prompt, output = [5, 9, 9, 120], [9, 5, 5, 7]
    undisturbed, back = Penalties(1, CPU), Penalties(1, CPU)
    undisturbed.admit(0, asked, prompt, len(prompt))
    for token in output:
        undisturbed.record(array(0), torch.tensor([token]))
    back.admit(0, asked, [*prompt, *output[:3]], len(prompt))
    back.record(array(0), torch.tensor(output[3:]))
    scores = logits()
    assert torch.equal(apply(undisturbed, scores, [0], 8), apply(back, scores, [0], 8))


def test_openais_penalties_of_one_row_leave_another_as_it_is() -> None:
    penalties = Penalties(2, CPU)
    penalties.admit(0, Sampling(output_presence_penalty=2.0), [1, 2], 1)
    penalties.admit(1, Sampling(repetition_penalty=1.3), [1, 2], 1)
    scores = logits(2)
    found = apply(penalties, scores, [0, 1], 2)
    assert torch.equal(found[1:], transformers_repetition(scores[1:], [1, 2], 1.3))
    torch.testing.assert_close(found[:1], openais_penalties(scores[:1], [2], 0, 2.0))
