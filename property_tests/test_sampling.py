"""Sampling is a function of the request and the logits, never of the batch."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tgi_async.wire.messages import Sampled, Sampling
from workers.sampling import Sampler

V = 700
CPU = torch.device("cpu")

samplings = st.builds(
    Sampling,
    do_sample=st.booleans(),
    temperature=st.floats(0.01, 10),
    top_k=st.sampled_from([0, 1, 5, 40, 400, V, 2 * V]),
    top_p=st.floats(0.001, 1),
    typical_p=st.floats(0.001, 1),
    repetition_penalty=st.floats(0.1, 3),
    frequency_penalty=st.floats(-2, 2),
    watermark=st.booleans(),
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 3),
    logprobs=st.booleans(),
    top_n_tokens=st.sampled_from([0, 1, 5]),
    min_tokens=st.integers(0, 3),
    end_ids=st.lists(st.integers(0, V + 1), max_size=3),
    banned=st.lists(st.lists(st.integers(0, V + 1), min_size=1, max_size=3), max_size=4),
)
contexts = st.lists(st.integers(0, V - 1), min_size=1, max_size=12)


def logits_of(n: int, seed: int, spread: float, coarse: bool) -> torch.Tensor:
    logits = torch.randn(n, V, generator=torch.Generator().manual_seed(seed)) * spread
    return logits.bfloat16() if coarse else logits


@given(
    requests=st.lists(st.tuples(samplings, contexts), min_size=1, max_size=6),
    seed=st.integers(0, 2**31),
    spread=st.sampled_from([0.1, 1.0, 4.0]),
    coarse=st.booleans(),
    data=st.data(),
)
@settings(max_examples=60, deadline=None)
def test_a_row_gives_in_any_batch_bit_for_bit_what_it_gives_alone(
    requests: list[tuple[Sampling, list[int]]],
    seed: int,
    spread: float,
    coarse: bool,
    data: st.DataObject,
) -> None:
    n = len(requests)
    together = Sampler(n, V, CPU)
    alone = [Sampler(1, V, CPU) for _ in requests]
    for row, (sampling, context) in enumerate(requests):
        together.admit(row, sampling, context)
        alone[row].admit(0, sampling, context)
    positions = [len(context) for _, context in requests]
    for step in range(3):
        rows = data.draw(st.permutations(range(n)).map(lambda order: order[: 1 + n // 2]))
        logits = logits_of(n, seed + step, spread, coarse)
        output = together.sample(rows, [positions[row] for row in rows], logits[rows])
        sampled, errors = together.to_wire(rows, output)
        assert not errors
        for one in sampled:
            single = alone[one.row]
            line = logits[one.row : one.row + 1]
            expected, _ = single.to_wire([0], single.sample([0], [positions[one.row]], line))
            assert [Sampled(0, one.tokens, one.logprobs, one.top)] == expected
            positions[one.row] += 1


@given(request=samplings, context=contexts, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_what_is_reported_is_a_part_of_a_distribution(
    request: Sampling, context: list[int], seed: int
) -> None:
    sampler = Sampler(1, V, CPU)
    sampler.admit(0, request, context)
    output = sampler.sample([0], [len(context)], logits_of(1, seed, 2.0, False))
    (one,), _ = sampler.to_wire([0], output)
    assert 0 <= one.tokens[0] < V
    assert len(one.logprobs) == request.logprobs
    assert all(logprob <= 1e-6 for logprob in one.logprobs)
    likeliest = one.top[0] if one.top else []
    assert len(likeliest) <= request.top_n_tokens
    logprobs = [top.logprob for top in likeliest]
    assert logprobs == sorted(logprobs, reverse=True)
    assert torch.tensor(logprobs).exp().sum() <= 1 + 1e-5
    if likeliest and not request.do_sample:
        assert one.tokens[0] == likeliest[0].id


@given(
    request=samplings,
    context=contexts,
    seed=st.integers(0, 2**31),
    removed=st.floats(0.1, 0.9),
)
@settings(max_examples=60, deadline=None)
def test_a_draw_does_not_change_where_tokens_go_that_did_not_win_it(
    request: Sampling, context: list[int], seed: int, removed: float
) -> None:
    asked = Sampling(do_sample=True, seed=request.seed, choice=request.choice)
    drawn = structs.replace(asked, temperature=request.temperature)
    sampler = Sampler(2, V, CPU)
    sampler.admit(0, drawn, context)
    logits = logits_of(1, seed, 2.0, False)
    before = int(sampler.sample([0], [len(context)], logits).tokens)
    lost = torch.rand(V, generator=torch.Generator().manual_seed(seed)) < removed
    lost[before] = False
    # The largest is what the others are measured by.
    lost[logits[0].topk(1).indices] = False
    sampler.admit(1, drawn, context)
    rest = logits.masked_fill(lost, -torch.inf)
    assert int(sampler.sample([1], [len(context)], rest).tokens) == before


@given(request=samplings, context=contexts, seed=st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_truncation_changes_no_draw_but_those_that_it_cuts(
    request: Sampling, context: list[int], seed: int
) -> None:
    cut = structs.replace(request, do_sample=True, top_n_tokens=V)
    whole = structs.replace(cut, top_k=0, top_p=1.0, typical_p=1.0)
    sampler = Sampler(2, V, CPU)
    sampler.admit(0, cut, context)
    sampler.admit(1, whole, context)
    logits = logits_of(1, seed, 2.0, False).expand(2, -1).contiguous()
    output = sampler.sample([0, 1], [len(context)] * 2, logits)
    (few, every), _ = sampler.to_wire([0, 1], output)
    kept = {top.id for top in few.top[0]}
    assert few.tokens[0] in kept
    assert (few.tokens == every.tokens) == (every.tokens[0] in kept)
