"""Which tokens a row does not sample, compared with transformers' processors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from transformers import MinNewTokensLengthLogitsProcessor, NoBadWordsLogitsProcessor

from tgi_async.wire.messages import Sampled, Sampling
from workers.sampling import Allowed, Sampler
from workers.sampling.parameters import Needs

V = 300
CPU = torch.device("cpu")
PROMPT = [5, 9, 9]
END = [7, 8]


def logits(n: int = 1, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * 4


def favouring(*ids: int) -> torch.Tensor:
    """Logits whose likeliest tokens are these, the first first."""
    made = torch.zeros(1, V)
    for place, id in enumerate(ids):
        made[0, id] = 100.0 - place
    return made


def sampler_of(*samplings: Sampling, tokens: list[int] = PROMPT) -> Sampler:
    made = Sampler(len(samplings), V, CPU)
    for row, sampling in enumerate(samplings):
        made.admit(row, sampling, tokens, len(PROMPT))
    return made


def next_of(made: Sampler, length: int, scores: torch.Tensor, row: int = 0) -> Sampled:
    sampled, errors = made.to_wire([row], made.sample([row], [length], scores))
    assert not errors
    return sampled[0]


def only(*ids: int) -> Allowed:
    """A grammar's mask for the first line."""
    allowed = np.zeros(32 * -(-V // 32), np.bool_)
    allowed[list(ids)] = True
    bits = np.packbits(allowed, bitorder="little").view(np.int32)[None]
    return Allowed(np.array([0]), bits)


def walk(asked: Sampling, n: int) -> list[int]:
    """What is sampled greedily from random logits."""
    made = sampler_of(asked)
    output: list[int] = []
    for step in range(n):
        output.append(next_of(made, len(PROMPT) + step, logits(seed=step % 3)).tokens[0])
    return output


def reference(n: int, processor: object) -> list[int]:
    context = list(PROMPT)
    for step in range(n):
        ids = torch.tensor([context])
        scores = processor(ids, logits(seed=step % 3).clone())  # type: ignore[operator]
        context.append(int(scores.argmax()))
    return context[len(PROMPT) :]


def test_no_end_comes_before_min_tokens_as_in_transformers() -> None:
    ends = [int(logits(seed=seed).argmax()) for seed in range(3)]
    asked = Sampling(min_tokens=5, end_ids=ends)
    processor = MinNewTokensLengthLogitsProcessor(len(PROMPT), 5, ends)
    found = walk(asked, 8)
    assert found == reference(8, processor)
    assert not set(ends) & set(found[:5])
    assert set(found[5:]) <= set(ends)


def test_bad_words_are_those_of_transformers() -> None:
    single = [walk(Sampling(), 2)[1:]]
    first, second, third = walk(Sampling(banned=single), 3)
    banned = [*single, [second, third], [third, first, second], [third, 250]]
    found = walk(Sampling(banned=banned), 30)
    assert found == reference(30, NoBadWordsLogitsProcessor(banned))
    assert found != walk(Sampling(banned=single), 30)


def test_a_sequence_is_banned_in_the_output_alone() -> None:
    """As in vLLM: what the prompt ends with does not count."""
    made = sampler_of(Sampling(banned=[[9, 50]]))
    assert next_of(made, 3, favouring(50, 51)).tokens[0] == 50
    assert next_of(made, 4, favouring(9)).tokens[0] == 9
    assert next_of(made, 5, favouring(50, 51)).tokens[0] == 51


def test_sequences_that_end_alike_do_not_undo_each_other() -> None:
    made = sampler_of(Sampling(banned=[[1, 50], [2, 50], [3, 2, 50]]))
    for step, (wanted, comes) in enumerate([(1, 1), (50, 51), (2, 2), (50, 51), (4, 4), (50, 50)]):
        assert next_of(made, 3 + step, favouring(wanted, 51)).tokens[0] == comes


def test_a_row_that_comes_back_remembers_its_output() -> None:
    asked = Sampling(banned=[[1, 2, 50]], min_tokens=4, end_ids=END)
    back = sampler_of(asked, tokens=[*PROMPT, 1, 2])
    assert next_of(back, 5, favouring(7, 50, 51)).tokens[0] == 51
    back = sampler_of(asked, tokens=[*PROMPT, 1, 2, 3, 4])
    assert next_of(back, 7, favouring(7)).tokens[0] == 7


def test_each_row_has_its_own_bans() -> None:
    made = sampler_of(
        Sampling(banned=[[1, 50]]),
        Sampling(banned=[[1, 2, 50], [60]]),
        Sampling(min_tokens=9, end_ids=[50]),
        Sampling(),
        Sampling(banned=[[9, 1, 50]]),
    )
    scores = [favouring(9, 60), favouring(1, 60), favouring(50, 60, 61)]
    for step, line in enumerate(scores):
        output = made.sample(list(range(5)), [3 + step] * 5, line.expand(5, -1))
        sampled, _ = made.to_wire(list(range(5)), output)
    assert [one.tokens[0] for one in sampled] == [60, 50, 60, 50, 60]


def test_where_a_grammar_allows_nothing_else_it_counts_more() -> None:
    made = sampler_of(Sampling(min_tokens=9, end_ids=END, banned=[[50]]))
    for ids, comes in (((7,), 7), ((7, 60), 60), ((50,), 50), ((50, 7), 50), ((50, 60), 60)):
        output = made.sample([0], [3], favouring(50, 7, 60), only(*ids))
        assert made.to_wire([0], output)[0][0].tokens[0] == comes


def test_what_is_banned_has_no_probability_and_the_models_own_is_reported() -> None:
    asked = Sampling(banned=[[50]], do_sample=True, seed=1, logprobs=True, top_n_tokens=2)
    scores = favouring(50, 51)
    found = next_of(sampler_of(asked), 3, scores)
    assert (found.tokens[0], found.top[0][0].id) == (51, 51)
    assert found.logprobs[0] == pytest.approx(0.0, abs=1e-6)
    assert found.top[0][1].logprob == pytest.approx(-99.0, abs=1e-3)
    own = Sampling(banned=[[50]], logprobs=True, top_n_tokens=1, model_logprobs=True)
    found = next_of(sampler_of(own), 3, scores)
    assert (found.tokens[0], found.top[0][0].id) == (51, 50)
    assert found.logprobs[0] == pytest.approx(float(scores.log_softmax(-1)[0, 51]))


def test_a_token_that_the_model_does_not_have_is_left_out() -> None:
    asked = Sampling(banned=[[V], [1, V], [V, 50]], min_tokens=1, end_ids=[V + 5])
    assert next_of(sampler_of(asked), 3, favouring(50)).tokens[0] == 50


def test_a_row_is_quick_again_once_it_may_end() -> None:
    made = Sampler(2, V, CPU)
    made.admit(0, Sampling(min_tokens=2, end_ids=END), PROMPT)
    made.admit(1, Sampling(min_tokens=2, end_ids=END, banned=[[50]]), PROMPT)
    for step in range(3):
        banned = made._parameters.needs & Needs.BAN
        assert [bool(one) for one in banned] == [step < 2, True]
        made.sample([0, 1], [3 + step] * 2, logits(2))


def test_broken_logits_are_reported_though_something_is_banned() -> None:
    made = sampler_of(Sampling(banned=[[50]]))
    scores = logits()
    scores[0, 9] = math.nan
    _, errors = made.to_wire([0], made.sample([0], [3], scores))
    assert len(errors) == 1
