"""The sampler as the runner uses it."""

from __future__ import annotations

import itertools

import pytest
import torch
from msgspec import structs
from transformers import (
    LogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from tgi_async.wire.messages import RowError, Sampled, Sampling
from workers.sampling import Sampler, sampler
from workers.sampling.watermark import DELTA, green

V = 1000
CPU = torch.device("cpu")
PROMPT = [5, 17, 17, 400]

MIXED = [
    Sampling(),
    Sampling(logprobs=True),
    Sampling(repetition_penalty=1.3, logprobs=True),
    Sampling(frequency_penalty=0.7, top_n_tokens=3),
    Sampling(watermark=True),
    Sampling(do_sample=True, seed=1),
    Sampling(do_sample=True, temperature=0.5, logprobs=True, seed=2),
    Sampling(do_sample=True, top_k=7, seed=3, top_n_tokens=4, logprobs=True),
    Sampling(do_sample=True, top_p=0.9, temperature=0.6, repetition_penalty=1.05, seed=4),
    Sampling(do_sample=True, top_p=0.99, temperature=2.0, seed=5, logprobs=True),
    Sampling(do_sample=True, typical_p=0.5, seed=6, logprobs=True),
    Sampling(
        do_sample=True,
        temperature=0.8,
        top_k=50,
        top_p=0.9,
        typical_p=0.9,
        repetition_penalty=1.2,
        frequency_penalty=0.3,
        watermark=True,
        seed=2**64 - 1,
        choice=3,
        logprobs=True,
        top_n_tokens=2,
    ),
    Sampling(do_sample=True, min_p=0.1, seed=7, logprobs=True, top_n_tokens=3),
    Sampling(output_frequency_penalty=0.4, output_presence_penalty=0.8, logprobs=True),
    Sampling(biased_ids=[3, 999, V], biases=[4.0, -100.0, 1.0], top_n_tokens=2),
    Sampling(do_sample=True, temperature=0.7, model_logprobs=True, logprobs=True, seed=8),
    Sampling(repetition_penalty=1.5, model_logprobs=True, top_n_tokens=7),
    Sampling(min_tokens=2, end_ids=[3, 4], banned=[[5], [6, 7]], logprobs=True, seed=10),
    Sampling(
        do_sample=True,
        temperature=1.3,
        top_p=0.9,
        typical_p=0.9,
        min_p=0.01,
        repetition_penalty=1.1,
        output_frequency_penalty=0.5,
        output_presence_penalty=-0.5,
        biased_ids=list(range(300)),
        biases=[0.5] * 300,
        model_logprobs=True,
        seed=9,
        logprobs=True,
        top_n_tokens=5,
    ),
]


def logits_of(n: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(n, V, generator=generator) * 3).to(dtype)


def batch(samplings: list[Sampling], prompt: list[int] = PROMPT) -> Sampler:
    made = Sampler(len(samplings), V, CPU)
    for row, sampling in enumerate(samplings):
        made.admit(row, sampling, prompt, len(PROMPT))
    return made


def step(
    made: Sampler, rows: list[int], position: int, logits: torch.Tensor
) -> tuple[list[Sampled], list[RowError]]:
    return made.to_wire(rows, made.sample(rows, [position] * len(rows), logits))


def only(sampling: Sampling, logits: torch.Tensor, prompt: list[int] = PROMPT) -> Sampled:
    sampled, errors = step(batch([sampling], prompt), [0], len(prompt), logits)
    assert not errors
    return sampled[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_greedy_row_takes_the_largest_logit_and_of_equals_the_lowest_id(
    dtype: torch.dtype,
) -> None:
    logits = logits_of(3, dtype=dtype)
    logits[1, [30, 20, 700]] = 50.0
    sampled, errors = step(batch([Sampling()] * 3), [0, 1, 2], 4, logits)
    assert [one.tokens[0] for one in sampled] == [logits[0].argmax(), 20, logits[2].argmax()]
    assert not errors


def test_a_row_without_logprobs_or_top_tokens_reports_none() -> None:
    assert only(Sampling(), logits_of(1)) == Sampled(0, [int(logits_of(1).argmax())])


def test_a_row_that_does_not_sample_ignores_temperature_and_truncation() -> None:
    logits = logits_of(1)
    warped = Sampling(temperature=0.1, top_k=3, top_p=0.1, typical_p=0.1, logprobs=True)
    assert only(warped, logits) == only(Sampling(logprobs=True), logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_greedy_rows_logprob_is_the_log_softmax_in_float32(dtype: torch.dtype) -> None:
    logits = logits_of(1, dtype=dtype)
    expected = logits.float().log_softmax(1).max().item()
    assert only(Sampling(logprobs=True), logits).logprobs == pytest.approx([expected], abs=1e-5)


def warped_logprobs(logits: torch.Tensor, *warpers: LogitsProcessor) -> torch.Tensor:
    scores = logits.clone()
    for warper in warpers:
        scores = warper(torch.tensor([PROMPT]), scores)
    return scores.log_softmax(1)[0]


@pytest.mark.parametrize("seed", range(5))
def test_logprobs_are_those_of_the_processed_logits(seed: int) -> None:
    logits = logits_of(1, seed)
    sampling = Sampling(
        do_sample=True,
        repetition_penalty=1.4,
        temperature=0.7,
        top_k=40,
        top_p=0.9,
        seed=seed,
        logprobs=True,
        top_n_tokens=6,
    )
    expected = warped_logprobs(
        logits,
        RepetitionPenaltyLogitsProcessor(1.4),
        TemperatureLogitsWarper(0.7),
        TopKLogitsWarper(40),
        TopPLogitsWarper(0.9),
    )
    found = only(sampling, logits)
    assert found.logprobs[0] == pytest.approx(expected[found.tokens[0]].item(), abs=1e-5)
    finite = int(expected.isfinite().sum())
    values, ids = expected.topk(min(6, finite))
    assert [top.id for top in found.top[0]] == ids.tolist()
    assert [top.logprob for top in found.top[0]] == pytest.approx(values.tolist(), abs=1e-5)


def test_top_tokens_are_exactly_as_many_as_asked_and_start_with_the_greedy_token() -> None:
    logits = logits_of(1, dtype=torch.bfloat16).float().round()
    top = only(Sampling(top_n_tokens=5), logits).top[0]
    assert len(top) == 5
    assert [one.id for one in top] == logits[0].sort(descending=True, stable=True).indices[
        :5
    ].tolist()


def test_top_tokens_may_be_as_many_as_the_vocabulary() -> None:
    top = only(Sampling(top_n_tokens=10 * V), logits_of(1)).top[0]
    assert sorted(one.id for one in top) == list(range(V))


def test_tokens_cut_by_truncation_are_not_reported() -> None:
    found = only(Sampling(do_sample=True, top_k=2, top_n_tokens=5), logits_of(1))
    assert len(found.top[0]) == 2


@pytest.mark.parametrize(
    "temperature", [0.3, *(pytest.param(x, marks=pytest.mark.full) for x in (1.0, 1.5))]
)
def test_draws_follow_the_distribution_at_its_temperature(temperature: float) -> None:
    n = 4000
    logits = torch.full((1, V), -torch.inf)
    logits[0, [1, 5, 300, 301, 999]] = torch.tensor([1.0, 0.5, 0.0, 2.0, 1.5])
    expected = (logits / temperature).softmax(1)[0]
    made = batch([Sampling(do_sample=True, temperature=temperature, seed=11)])
    tokens = [made.sample([0], [position], logits).tokens for position in range(n)]
    counts = torch.bincount(torch.cat(tokens), minlength=V)
    kept = expected > 0
    assert counts[~kept].sum() == 0
    chi = ((counts - n * expected) ** 2 / (n * expected))[kept].sum()
    # 4 degrees of freedom: above 24 once in 10,000.
    assert chi < 24


def test_the_same_seed_gives_the_same_token_and_another_seed_or_choice_or_position_others() -> None:
    logits = torch.zeros(1, V)
    first = Sampling(do_sample=True, seed=9)
    assert only(first, logits) == only(first, logits)
    others = [
        only(Sampling(do_sample=True, seed=10), logits).tokens[0],
        only(Sampling(do_sample=True, seed=9, choice=1), logits).tokens[0],
        step(batch([first]), [0], 5, logits)[0][0].tokens[0],
    ]
    assert only(first, logits).tokens[0] not in others


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(do_sample=True),
        Sampling(do_sample=True, temperature=0.7, top_p=0.95),
        Sampling(do_sample=True, top_k=50, typical_p=0.95),
        Sampling(do_sample=True, min_p=0.02, repetition_penalty=1.1),
    ],
)
def test_the_noise_of_float32_between_batch_shapes_changes_almost_no_draw(asked: Sampling) -> None:
    n_rows, n_steps, size = 50, 80, 3e-5
    samplings = [structs.replace(asked, seed=seed) for seed in range(n_rows)]
    made, again = batch(samplings), batch(samplings)
    rows = list(range(n_rows))
    generator = torch.Generator().manual_seed(1)
    n_changed = 0
    for position in range(4, 4 + n_steps):
        logits = logits_of(n_rows, position)
        disturbed = logits + size * (2 * torch.rand(n_rows, V, generator=generator) - 1)
        tokens = [
            one.sample(rows, [position] * n_rows, given).tokens
            for one, given in ((made, logits), (again, disturbed))
        ]
        n_changed += int((tokens[0] != tokens[1]).sum())
    # A draw changes with probability at most size / 3 / temperature: 0.06 of these 4,000 expected.
    assert n_changed <= 1


def test_a_lone_draw_over_the_vocabulary_is_that_of_a_row_that_reports_or_cuts_nothing() -> None:
    logits = logits_of(1)
    drawn = [Sampling(do_sample=True, seed=seed) for seed in range(50)]
    tokens = [only(one, logits).tokens[0] for one in drawn]
    assert len(set(tokens)) > 5
    for reported in (
        {"logprobs": True},
        {"top_n_tokens": 3},
        {"top_p": 1 - 1e-9},
        {"min_p": 1e-30},
    ):
        assert [only(structs.replace(one, **reported), logits).tokens[0] for one in drawn] == tokens


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_gives_in_any_batch_bit_for_bit_what_it_gives_alone(dtype: torch.dtype) -> None:
    together = batch(MIXED)
    alone = [batch([sampling]) for sampling in MIXED]
    rows = list(range(len(MIXED)))
    for position in range(4, 12):
        logits = logits_of(len(MIXED), position, dtype)
        # Half of the steps run with every other row only, in reverse.
        active = rows if position % 2 else rows[::-2]
        sampled, errors = step(together, active, position, logits[active])
        assert not errors
        for one in sampled:
            line = logits[one.row : one.row + 1]
            (single,), _ = step(alone[one.row], [0], position, line)
            assert (one.tokens, one.logprobs, one.top) == (
                single.tokens,
                single.logprobs,
                single.top,
            )


def test_a_lone_row_over_a_real_vocabulary_gives_what_it_gives_among_others() -> None:
    vocab_size = 49152
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(6, vocab_size, generator=generator)
    samplings = [
        Sampling(do_sample=True, logprobs=True, seed=1),
        Sampling(do_sample=True, top_p=0.95, logprobs=True, seed=2),
        Sampling(do_sample=True, typical_p=0.95, logprobs=True, seed=3),
        Sampling(do_sample=True, top_k=300, logprobs=True, seed=4),
        Sampling(logprobs=True, top_n_tokens=3),
        Sampling(do_sample=True, top_p=0.5, temperature=0.2, logprobs=True, seed=6),
    ]
    together = Sampler(6, vocab_size, CPU)
    for row, sampling in enumerate(samplings):
        together.admit(row, sampling, PROMPT)
    sampled, _ = step(together, list(range(6)), 4, logits)
    for one, sampling in zip(sampled, samplings, strict=True):
        alone = Sampler(6, vocab_size, CPU)
        alone.admit(one.row, sampling, PROMPT)
        assert step(alone, [one.row], 4, logits[one.row : one.row + 1]) == ([one], [])


def test_few_candidates_give_what_the_whole_vocabulary_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    logits = logits_of(len(MIXED), dtype=torch.bfloat16)
    rows = list(range(len(MIXED)))
    found = []
    for candidates in (8, 64, V):
        monkeypatch.setattr(sampler, "CANDIDATES", candidates)
        found.append(step(batch(MIXED), rows, 4, logits))
    assert found[0] == found[1] == found[2]


def test_a_replayed_row_goes_on_as_the_undisturbed_one() -> None:
    for sampling in MIXED:
        made = batch([sampling])
        emitted = []
        for position in range(4, 10):
            (one,), _ = step(made, [0], position, logits_of(1, position))
            emitted.append(one.tokens[0])
        replayed = batch([sampling], PROMPT + emitted[:3])
        for position in range(7, 10):
            (one,), _ = step(replayed, [0], position, logits_of(1, position))
            assert one.tokens[0] == emitted[position - 4]


def test_a_repetition_penalty_covers_the_tokens_just_sampled() -> None:
    logits = torch.zeros(1, V)
    logits[0, [50, 60, 70]] = torch.tensor([4.0, 3.9, 3.8])
    made = batch([Sampling(repetition_penalty=1.5)])
    tokens = [step(made, [0], position, logits)[0][0].tokens[0] for position in range(4, 7)]
    assert tokens == [50, 60, 70]


def test_openais_penalties_and_biases_are_those_of_a_plain_implementation() -> None:
    asked = Sampling(
        output_frequency_penalty=0.9,
        output_presence_penalty=0.4,
        biased_ids=[17, 5, 200],
        biases=[3.0, -100.0, 1.5],
        logprobs=True,
    )
    made = batch([asked])
    output: list[int] = []
    for position in range(4, 40):
        logits = logits_of(1, position % 3)
        expected = logits.double()[0]
        for token in set(output):
            expected[token] -= output.count(token) * 0.9 + 0.4
        for token, bias in zip(asked.biased_ids, asked.biases, strict=True):
            expected[token] += bias
        (one,), _ = step(made, [0], position, logits)
        assert one.tokens[0] == expected.argmax()
        assert one.logprobs[0] == pytest.approx(expected.log_softmax(0).max().item(), abs=1e-5)
        output.append(one.tokens[0])
    assert len(set(output)) > 3


@pytest.mark.parametrize(
    "asked",
    [
        Sampling(),
        Sampling(do_sample=True, seed=1),
        Sampling(do_sample=True, seed=1, temperature=1.7),
        Sampling(do_sample=True, seed=1, top_k=3, top_p=0.5, typical_p=0.9, min_p=0.01),
        Sampling(repetition_penalty=2.0),
        Sampling(watermark=True),
        Sampling(biased_ids=[8], biases=[100.0]),
    ],
)
@pytest.mark.parametrize("top_n", [0, 6])
def test_log_probabilities_of_the_model_are_before_all_processing(
    asked: Sampling, top_n: int
) -> None:
    logits = logits_of(1)
    expected = logits.log_softmax(1)[0]
    processed = only(asked, logits)
    reported = {"logprobs": True, "top_n_tokens": top_n, "model_logprobs": True}
    found = only(structs.replace(asked, **reported), logits)
    assert found.tokens[0] == processed.tokens[0]
    assert found.logprobs[0] == pytest.approx(expected[found.tokens[0]].item(), abs=1e-5)
    values, ids = expected.topk(top_n)
    likeliest = found.top[0] if top_n else []
    assert [one.id for one in likeliest] == ids.tolist()
    assert [one.logprob for one in likeliest] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_watermark_follows_the_token_before() -> None:
    logits = logits_of(1)
    made = batch([Sampling(watermark=True)])
    previous = PROMPT[-1]
    for position in range(4, 8):
        expected = (logits + green(torch.tensor([previous]), V) * DELTA).argmax()
        previous = step(made, [0], position, logits)[0][0].tokens[0]
        assert previous == expected


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_broken_logits_fails_alone(bad: float, dtype: torch.dtype) -> None:
    samplings = [*MIXED, *MIXED]
    logits = logits_of(len(samplings), dtype=dtype)
    whole, _ = step(batch(samplings), list(range(len(samplings))), 4, logits)
    logits[: len(MIXED), 123] = bad
    sampled, errors = step(batch(samplings), list(range(len(samplings))), 4, logits)
    assert [error.row for error in errors] == list(range(len(MIXED)))
    assert all("float32" in error.message for error in errors)
    assert sampled == whole[len(MIXED) :]


def test_a_row_with_every_token_masked_fails_alone() -> None:
    logits = logits_of(2)
    logits[0] = -torch.inf
    for sampling in MIXED:
        sampled, errors = step(batch([sampling] * 2), [0, 1], 4, logits)
        assert [one.row for one in sampled] == [1]
        assert [error.row for error in errors] == [0]


def test_the_models_logits_are_left_as_they_are() -> None:
    logits = logits_of(len(MIXED))
    before = logits.clone()
    step(batch(MIXED), list(range(len(MIXED))), 4, logits)
    assert torch.equal(logits, before)


def test_a_temperature_near_zero_is_greedy_and_does_not_overflow() -> None:
    logits = logits_of(1)
    found = only(Sampling(do_sample=True, temperature=1e-40, logprobs=True), logits)
    assert found.tokens[0] == logits.argmax()
    assert found.logprobs == [0.0]


def test_a_row_that_is_used_again_keeps_nothing_of_its_last_request() -> None:
    logits = logits_of(1)
    made = Sampler(1, V, CPU)
    for before, after in itertools.permutations(MIXED, 2):
        made.admit(0, before, [1, 2, 3])
        step(made, [0], 3, logits)
        made.release(0)
        made.admit(0, after, PROMPT)
        assert step(made, [0], 4, logits) == ([only(after, logits)], [])


def test_what_a_row_wanted_is_remembered_when_it_is_used_again_before_the_results_are_read() -> (
    None
):
    made = batch([Sampling(logprobs=True)])
    output = made.sample([0], [4], logits_of(1))
    made.release(0)
    made.admit(0, Sampling(), PROMPT)
    assert made.to_wire([0], output)[0][0].logprobs


def test_placeholders_beyond_the_vocabulary_are_not_penalized() -> None:
    """As those of images are, in models that cannot emit them."""
    draw = torch.Generator().manual_seed(4)
    logits = torch.randn(2, V, generator=draw) * 4
    tried = Sampler(2, V, CPU)
    asked = Sampling(repetition_penalty=1.7, frequency_penalty=0.5, logprobs=True)
    tried.admit(0, asked, [5, V, V + 7, 17])
    tried.admit(1, asked, [5, 17])
    logits[1] = logits[0]
    output = tried.sample([0, 1], [4, 4], logits)
    one, other = output.to_wire([0, 1])[0]
    assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
    tried.admit(0, asked, [V])
    assert not tried.sample([0], [1], logits[:1]).to_wire([0])[1]
