"""Sampling on the device against the sampler's other path, which runs in torch on the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.gpu.conftest import INTERPRETED
from tests.workers.sampling.test_exponential_race import unmixed
from tgi_async.wire.messages import Sampling
from workers.sampling import Allowed, Sampler, SamplerOutput
from workers.sampling.candidates import candidates
from workers.sampling.device import NUMBERS, DeviceSampling
from workers.sampling.exponential_race import add_gumbel_noise
from workers.sampling.output import Picked
from workers.sampling.truncation import UNIT

pytest.importorskip("triton", reason="the package triton is not installed")

N_ROWS = 60 if INTERPRETED else 2000
CPU = torch.device("cpu")
NOISE = 1e-5
"""More than the logarithms and exponentials of two libraries make a score differ by."""


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Infinities are among what is sampled."""
    with np.errstate(all="ignore"):
        yield


class Case:
    """Rows, one for each of `asked`, and their next logits."""

    def __init__(self, asked: list[Sampling], logits: Tensor) -> None:
        self.asked = asked
        self.logits = logits
        self.rows = list(range(len(asked)))
        self.positions = [1 + 7 * row for row in self.rows]

    def sampler(self, device: str | None) -> Sampler:
        made = Sampler(
            len(self.rows),
            self.logits.shape[1],
            torch.device(device or CPU),
            on_device=device is not None,
        )
        for row, one in enumerate(self.asked):
            made.admit(row, one, [1])
        return made

    def expected(self) -> SamplerOutput:
        return self.sampler(None).sample(self.rows, self.positions, self.logits)

    def found(self, device: str) -> Picked:
        sampler = self.sampler(device)
        rows, positions = np.asarray(self.rows), np.asarray(self.positions)
        assert sampler.takes(rows).all()
        assert sampler.device_sampling is not None
        numbers = torch.from_numpy(sampler.numbers(rows, positions)).to(device)
        picked = sampler.device_sampling.sample(self.logits.to(device), numbers)
        return Picked(*(x.cpu() for x in picked))

    def processed(self) -> Tensor:
        """float32 [n, V]: scores after temperature, the largest of a row being 0."""
        scores = self.logits.float()
        scores -= scores.amax(1, keepdim=True)
        temperature = [one.temperature if one.do_sample else 1.0 for one in self.asked]
        return scores / torch.tensor(temperature)[:, None]

    def near_a_tie(self, tokens: Tensor, others: Tensor) -> Tensor:
        """bool [n]: whether the noisy scores of these two tokens of each row nearly tie."""
        sampler = self.sampler(None)
        numbers = sampler._bits(
            np.asarray(self.rows), np.asarray(self.positions), np.ones(len(self.rows), np.uint16)
        )
        ids = torch.stack([tokens, others], 1)
        values = add_gumbel_noise(self.processed().gather(1, ids), ids, numbers)
        return (values[:, 0] - values[:, 1]).abs() < NOISE

    def near_the_bound(self) -> Tensor:
        """bool [n]: whether the mass before some token is top-p's share of the mass, as near as a
        sum in float32 says."""
        found = candidates(self.processed(), self.logits.shape[1])
        weights = (found.scores.double().exp() * UNIT).round()
        before = weights.cumsum(1) - weights
        top_p = torch.tensor([one.top_p for one in self.asked], dtype=torch.float64)
        part = before / weights.sum(1, keepdim=True) - top_p[:, None]
        only = torch.tensor(
            [one.do_sample and not one.top_k and one.top_p < 1 for one in self.asked]
        )
        return only & (part.abs() < 1e-6).any(1)


def expect_the_same(case: Case, device: str) -> None:
    expected, found = case.expected(), case.found(device)
    assert torch.equal(found.max_logits, expected.max_logits.float())
    undecided = case.near_the_bound()
    assert undecided.float().mean() <= 0.1
    other = (found.tokens != expected.tokens) & ~undecided
    assert not (other & ~case.near_a_tie(found.tokens, expected.tokens)).any()
    assert other.sum() <= 1 + len(other) // 500
    same = ~other & ~undecided
    assert expected.logprobs is not None
    torch.testing.assert_close(
        found.logprobs[same], expected.logprobs[same], rtol=0, atol=NOISE, equal_nan=True
    )


def made_case(
    seed: int, n: int, vocab_size: int, dtype: torch.dtype = torch.float32, **fixed: Any
) -> Case:
    draw = np.random.default_rng(seed)

    def one() -> Sampling:
        asked = {
            "do_sample": draw.random() < 0.95,
            "temperature": float(np.exp(draw.uniform(np.log(0.01), np.log(5)))),
            "top_k": int(draw.integers(1, vocab_size + 1)) if draw.random() < 0.5 else 0,
            "top_p": float(draw.uniform(0.01, 1)) if draw.random() < 0.7 else 1.0,
            "min_p": float(np.exp(draw.uniform(-9, 0))) if draw.random() < 0.3 else 0.0,
            "seed": int(draw.integers(0, 2**64, dtype=np.uint64)),
        }
        return Sampling(**(asked | fixed), logprobs=True)

    spreads = draw.choice([0.1, 1.0, 4.0, 30.0], (n, 1))
    logits = draw.standard_normal((n, vocab_size)) * spreads
    # Of every second row most tokens tie with others, and every third has masked ones.
    logits[::2] = np.round(logits[::2] * 4 / spreads[::2]) * spreads[::2] / 4
    logits[::3][draw.random(logits[::3].shape) < 0.2] = -np.inf
    logits[:, 0] = np.maximum(logits[:, 0], -1e3)
    return Case([one() for _ in range(n)], torch.from_numpy(logits).to(dtype))


def full(*values: Any) -> Any:
    """One of a matrix whose other entries show the same kind: interpreted, each takes seconds."""
    return pytest.param(*values, marks=pytest.mark.full)


@pytest.mark.parametrize("vocab_size", [full(7), 37, full(300), 1000])
def test_it_draws_what_the_other_path_draws(device: str, vocab_size: int) -> None:
    expect_the_same(made_case(vocab_size, N_ROWS, vocab_size), device)


@pytest.mark.full
@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("vocab_size", [7, 37, 300, 1000])
def test_it_draws_what_the_other_path_draws_many_times(
    device: str, vocab_size: int, seed: int
) -> None:
    expect_the_same(made_case(1000 + seed, N_ROWS, vocab_size), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_takes_logits_in_half_precision(device: str, dtype: torch.dtype) -> None:
    expect_the_same(made_case(1, 20, 100, dtype), device)


# Logits that tie a lot, and where most of the mass lies anywhere.
few_logits = st.lists(
    st.sampled_from([-np.inf, -30.0, -2.0, -1.0, -0.5, -0.0, 0.0, 0.5, 1.0, 1.25])
    | st.floats(-3, 3),
    min_size=20,
    max_size=20,
)
requests = st.builds(
    Sampling,
    do_sample=st.just(True),
    temperature=st.sampled_from([0.01, 0.5, 1.0]) | st.floats(0.01, 5),
    top_k=st.integers(0, 20),
    top_p=st.sampled_from([0.3, 0.9, 1.0]) | st.floats(0.01, 1),
    min_p=st.sampled_from([0.0, 0.0, 1.0]) | st.floats(0.0, 1),
    seed=st.integers(0, 2**64 - 1),
    choice=st.integers(0, 3),
    logprobs=st.just(True),
)


@given(rows=st.lists(st.tuples(requests, few_logits), min_size=10, max_size=10))
@settings(
    max_examples=10 if INTERPRETED else 200,
    deadline=None,
    derandomize=True,
    # The interpreter is too slow to look for the least of the examples that fail.
    phases=[Phase.explicit, Phase.generate] if INTERPRETED else list(Phase),
    suppress_health_check=list(HealthCheck),
)
def test_whatever_is_asked_for_the_draw_is_the_other_paths(
    device: str, rows: list[tuple[Sampling, list[float]]]
) -> None:
    logits = torch.tensor([line for _, line in rows], dtype=torch.float32)
    # What has no token at all is an error, wherever it is sampled.
    logits[:, 7] = logits[:, 7].clamp(min=-30)
    case = Case([asked for asked, _ in rows], logits)
    expected, found = case.expected(), case.found(device)
    clear = ~case.near_the_bound()
    other = clear & (found.tokens != expected.tokens)
    assert not (other & ~case.near_a_tie(found.tokens, expected.tokens)).any()
    assert expected.logprobs is not None
    same = clear & ~other
    torch.testing.assert_close(found.logprobs[same], expected.logprobs[same], rtol=0, atol=NOISE)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        # Ids 2, 5, 6 and 8 tie for the second place, behind 4.
        full({"top_k": 1}, [4]),
        ({"top_k": 3}, [2, 4, 5, 6, 8]),
        # 4 has 20 parts of 86, each of the four 10: before the third of them there are 0.465.
        ({"top_p": 0.2}, [4]),
        full({"top_p": 0.46}, [4, 2, 5]),
        ({"top_p": 0.47}, [4, 2, 5, 6]),
        # Of the 60 parts that top-k keeps, a half lies before the second of the four.
        ({"top_k": 3, "top_p": 0.49}, [4, 2]),
        full({"top_k": 3, "top_p": 0.51}, [4, 2, 5]),
        ({"min_p": 0.51}, [4]),
        full({"top_p": 0.999, "min_p": 0.39}, [1, 2, 3, 4, 5, 6, 7, 8]),
        ({"top_p": 0.47, "min_p": 0.39}, [4, 2, 5, 6]),
    ],
)
def test_what_is_kept_is_drawn_and_nothing_else(
    device: str, asked: dict[str, Any], kept: list[int]
) -> None:
    n = 40
    shares = torch.tensor([1.0, 8, 10, 8, 20, 10, 10, 8, 10, 1]) / 20
    logits = (shares.double().log2() * np.log(2)).float().expand(n, -1)
    case = Case([Sampling(do_sample=True, seed=seed, **asked) for seed in range(n)], logits)
    found = case.found(device)
    assert sorted(set(found.tokens.tolist())) == sorted(kept)
    total = shares[kept].sum()
    expected = (shares[found.tokens] / total).log()
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=NOISE)


@pytest.mark.parametrize(("n", "k"), [full(4, 2), (4, 3), full(8, 5)])
def test_of_tokens_that_all_tie_top_p_keeps_the_lowest_ids(device: str, n: int, k: int) -> None:
    asked = [Sampling(do_sample=True, top_k=n - 1, top_p=k / n, seed=seed) for seed in range(40)]
    found = Case(asked, torch.zeros(len(asked), n)).found(device)
    assert set(found.tokens.tolist()) == set(range(k))


def flat(n: int, vocab_size: int) -> Tensor:
    """Logits of which no few have most of the mass: in the first line all differ, in the second
    many tie, in the third most lie within a hair's breadth, a long way below others."""
    draw = np.random.default_rng(vocab_size)
    logits = draw.standard_normal((n, vocab_size))
    logits[1::3] = np.round(logits[1::3] * 8) / 8
    logits[2::3] = np.where(draw.random(logits[2::3].shape) < 0.02, logits[2::3], -6.0)
    logits[2::3] += 1e-3 * draw.standard_normal(logits[2::3].shape)
    return torch.from_numpy(logits).float()


@pytest.mark.parametrize(
    "asked",
    [
        {"top_p": 0.9},
        full({"top_p": 0.9999}),
        full({"top_k": 9000}),
        {"top_k": 9000, "top_p": 0.7},
        full({"top_k": 50, "top_p": 0.9, "min_p": 0.01}),
        full({"min_p": 0.02}),
        {},
    ],
)
def test_a_large_vocabulary_is_drawn_from_in_parts(device: str, asked: dict[str, Any]) -> None:
    vocab_size = 20_011
    n = 3 if INTERPRETED else 60
    rows = [Sampling(do_sample=True, seed=seed, logprobs=True, **asked) for seed in range(n)]
    case = Case(rows, flat(n, vocab_size))
    expected, found = case.expected(), case.found(device)
    assert torch.equal(found.tokens, expected.tokens)
    # Some token may be kept on one path only, for the mass that top-p takes its share of is a sum
    # in float32, on both.
    torch.testing.assert_close(found.logprobs, expected.logprobs, rtol=0, atol=1e-4)


def test_groups_grow_with_the_vocabulary(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.sampling.device.MOST_GROUPS", 8)
    expect_the_same(made_case(3, 15, 300), device)


def test_a_greedy_row_is_one_of_zeros_and_takes_of_equals_the_lowest_id(device: str) -> None:
    logits = torch.randn(4, 9000, generator=torch.Generator().manual_seed(0))
    logits[1, [8999, 4100, 4099, 700]] = 50.0
    logits[2] = -7.0
    logits[3] = torch.where(torch.arange(9000) % 2 == 0, -1.0, 0.0)
    logits[3, 1] = -0.0
    sampling = DeviceSampling(9000, 4, torch.device(device))
    zeros = torch.zeros(4, sampling.WIDTH, dtype=torch.int32, device=device)
    found = Picked(*(x.cpu() for x in sampling.sample(logits.to(device), zeros)))
    assert found.tokens.tolist() == [int(logits[0].argmax()), 700, 0, 1]
    assert torch.equal(found.max_logits, logits.amax(1))
    expected = logits.double().log_softmax(1).amax(1).float()
    torch.testing.assert_close(found.logprobs, expected, rtol=0, atol=NOISE)


@pytest.mark.parametrize("word", [0, 1, 2**20, 2**30, 2**31 - 1])
def test_the_noise_of_any_hash_is_the_races(device: str, word: int) -> None:
    # Token 0 under the first word 0 has the second word for its only hash.
    second = torch.tensor(unmixed(word), dtype=torch.int64).int()
    key = torch.stack([torch.zeros_like(second), second])[None]
    noise = add_gumbel_noise(torch.zeros(1, 2), torch.arange(2)[None], key)[0]
    # What token 0 lacks in its score is next to what it has more in noise.
    apart = torch.tensor([NOISE, -NOISE]) + (noise[1] - noise[0])
    logits = torch.stack([apart, torch.zeros(2)], 1)
    numbers = np.zeros(2, NUMBERS)
    numbers["keys"], numbers["mode"], numbers["temperature"] = key.numpy(), 1, 1.0
    sampling = DeviceSampling(2, 2, torch.device(device))
    asked = torch.from_numpy(numbers.view(np.int32).reshape(2, sampling.WIDTH))
    found = sampling.sample(logits.to(device), asked.to(device))
    assert found.tokens.tolist() == [0, 1]


@pytest.mark.filterwarnings("ignore:All-NaN slice encountered")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_of_broken_logits_says_so_and_harms_nobody_else(
    device: str, dtype: torch.dtype
) -> None:
    case = made_case(11, 24, 90, dtype)
    whole = case.found(device)
    bad = torch.arange(24) % 2 == 0
    case.logits[0::8, 80] = torch.nan
    case.logits[2::8, 80] = -torch.nan
    case.logits[4::8, 80] = torch.inf
    case.logits[6::8] = -torch.inf
    found = case.found(device)
    assert found.max_logits[0::8].isnan().all()
    assert found.max_logits[2::8].isnan().all()
    assert (found.max_logits[4::8] == torch.inf).all()
    assert (found.max_logits[6::8] == -torch.inf).all()
    assert ((found.tokens >= 0) & (found.tokens < 90)).all()
    for mine, before in zip(found, whole, strict=True):
        assert torch.equal(mine[~bad], before[~bad])


def test_a_temperature_near_zero_is_greedy_and_does_not_overflow(device: str) -> None:
    asked = [
        Sampling(do_sample=True, temperature=temperature, top_p=top_p, logprobs=True)
        for temperature in (1e-40, 1e-46, 1e-30)
        for top_p in (1.0, 0.9)
    ]
    logits = torch.randn(len(asked), 50, generator=torch.Generator().manual_seed(0))
    found = Case(asked, logits).found(device)
    assert torch.equal(found.tokens, logits.argmax(1))
    assert found.logprobs.tolist() == [0.0] * len(asked)


def test_a_row_gives_in_any_batch_bit_for_bit_what_it_gives_alone(device: str) -> None:
    case = made_case(5, 10, 5000)
    sampler = case.sampler(device)
    sampling = sampler.device_sampling
    assert sampling is not None
    on_host = sampler.numbers(np.asarray(case.rows), np.asarray(case.positions))
    numbers = torch.from_numpy(on_host).to(device)
    # As lines of a wider tensor, which are not aligned.
    logits = torch.nn.functional.pad(case.logits, (3, 10)).to(device)[:, 3:5003]
    together = sampling.sample(logits, numbers)
    for rows in (slice(3, 4), slice(7, 10)):
        alone = sampling.sample(logits[rows].clone(), numbers[rows])
        for mine, whole in zip(alone, together, strict=True):
            assert torch.equal(mine, whole[rows])


MIXED = [
    Sampling(),
    Sampling(logprobs=True),
    Sampling(do_sample=True, seed=1, temperature=0.7, top_p=0.9),
    Sampling(do_sample=True, seed=2, top_k=5, logprobs=True),
    Sampling(repetition_penalty=1.3, logprobs=True),
    Sampling(do_sample=True, seed=3, typical_p=0.5),
    Sampling(do_sample=True, seed=4, top_k=20, top_n_tokens=3, logprobs=True),
    Sampling(do_sample=True, seed=5, top_p=0.8, model_logprobs=True, logprobs=True),
    Sampling(biased_ids=[8], biases=[100.0]),
    Sampling(watermark=True),
    Sampling(do_sample=True, seed=6, min_p=0.1),
]


@pytest.mark.parametrize(
    "rows", [range(11), full(range(5)), full([4, 5]), full([10, 0]), [9, 2, 4]]
)
def test_each_row_takes_its_own_path_and_gets_what_it_asked_for(
    device: str, rows: list[int]
) -> None:
    case = Case(MIXED, torch.randn(11, 60, generator=torch.Generator().manual_seed(1)) * 3)
    rows = list(rows)
    positions = [9] * len(rows)
    # Line 0 and, if it is there, line 2 follow a grammar.
    lines = np.arange(0, min(len(rows), 3), 2)
    bits = np.full((len(lines), 2), 0x5A5A5A5A, np.int32)
    for allowed in (None, Allowed(lines, bits)):
        ours, theirs = case.sampler(device), case.sampler(None)
        for _ in range(2):
            found = ours.sample(rows, positions, case.logits[rows].to(device), allowed)
            expected = theirs.sample(rows, positions, case.logits[rows], allowed)
            sampled, errors = ours.to_wire(rows, found)
            wanted, _ = theirs.to_wire(rows, expected)
            assert not errors
            for one, other in zip(sampled, wanted, strict=True):
                assert (one.row, one.tokens[0]) == (other.row, other.tokens[0])
                assert [[top.id for top in each] for each in one.top] == [
                    [top.id for top in each] for each in other.top
                ]
                assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_what_has_been_picked_is_not_sampled_again(
    device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = Case(MIXED, torch.randn(11, 60, generator=torch.Generator().manual_seed(1)))
    sampler = case.sampler(device)
    taken = sampler.takes(np.arange(11))
    assert taken.tolist() == [True] * 4 + [False] * 6 + [True]
    logits = case.logits.to(device)
    expected = sampler.sample(case.rows, case.positions, logits)
    picked = Picked(
        torch.arange(40, 51, device=device),
        torch.full((11,), 6.0, device=device),
        torch.full((11,), -1.0, device=device),
    )

    def sample(*_: Any) -> Picked:
        raise AssertionError("it was sampled again")

    monkeypatch.setattr(DeviceSampling, "sample", sample)
    found = case.sampler(device).sample(case.rows, case.positions, logits, None, picked)
    for i in range(11):
        assert found.tokens[i] == (40 + i if taken[i] else expected.tokens[i])
    greedy = case.sampler(device).sample([0, 2], [1, 1], logits[:2], None, Picked(*picked))
    assert greedy.tokens is picked.tokens
    assert greedy.logprobs is None
