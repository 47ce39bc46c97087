"""Sampling on the device, seen from the host: what it is asked, and that nothing waits for it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch._subclasses import FakeTensorMode

from tests.helpers.triton_process import NEEDED
from tgi_async.wire.messages import Sampling
from workers.sampling import Sampler, sampler
from workers.sampling.device import NUMBERS, DeviceSampling
from workers.sampling.random import Purpose, keys

V = 1000
CPU = torch.device("cpu")
TAKEN = [
    Sampling(),
    Sampling(logprobs=True, model_logprobs=True),
    Sampling(temperature=0.3, top_k=5, typical_p=0.4),
    Sampling(do_sample=True, seed=2**64 - 1, choice=3, temperature=0.7),
    Sampling(do_sample=True, seed=7, top_k=50, top_p=0.9, min_p=0.05, logprobs=True),
    Sampling(do_sample=True, seed=8, top_k=2 * V, top_p=0.1),
]
LEFT = [
    Sampling(top_n_tokens=1),
    Sampling(repetition_penalty=1.1),
    Sampling(output_presence_penalty=0.1),
    Sampling(watermark=True),
    Sampling(biased_ids=[3], biases=[1.0]),
    Sampling(do_sample=True, typical_p=0.9),
    Sampling(do_sample=True, top_p=0.9, logprobs=True, model_logprobs=True),
    Sampling(banned=[[3]]),
    Sampling(min_tokens=1, end_ids=[3]),
]


def batch(asked: list[Sampling], on_device: bool | None = True) -> Sampler:
    made = Sampler(len(asked), V, CPU, on_device=on_device)
    for row, one in enumerate(asked):
        made.admit(row, one, [1, 2])
    return made


def test_it_takes_rows_by_what_they_ask_for() -> None:
    made = batch([*TAKEN, *LEFT])
    expected = [True] * len(TAKEN) + [False] * len(LEFT)
    assert made.takes(np.arange(len(expected))).tolist() == expected
    assert made.takes(np.array([7, 3])).tolist() == [False, True]


def test_on_a_cpu_there_is_none_unless_it_is_asked_for() -> None:
    made = batch(TAKEN, on_device=None)
    assert made.device_sampling is None
    assert not made.takes(np.arange(len(TAKEN))).any()


def test_numbers_say_what_a_row_draws_with_and_nothing_of_other_rows() -> None:
    made = batch([*TAKEN, *LEFT])
    rows = np.array([4, 12, 3, 0, 5, 1, 10])
    numbers = made.numbers(rows, rows + 100)
    assert numbers.dtype == np.int32
    assert numbers.shape == (7, DeviceSampling.WIDTH)
    assert not numbers[[1, 3, 5, 6]].any()
    found = numbers.view(NUMBERS)[:, 0]
    seeds = np.array([7, 2**64 - 1, 8], np.uint64)
    choices, positions = np.array([0, 3, 0], np.uint64), np.array([104, 103, 105], np.uint64)
    drawn = found[[0, 2, 4]]
    assert (drawn["keys"] == keys(seeds, choices, positions, Purpose.TOKEN)).all()
    assert drawn["mode"].tolist() == [3, 1, 3]
    assert drawn["temperature"].tolist() == [1.0, np.float32(0.7), 1.0]
    assert drawn["top_k"].tolist() == [50, V, V]
    assert drawn["top_p"].tolist() == [0.9, 1.0, 0.1]
    assert drawn["min_score"].tolist() == [np.log(0.05), -np.inf, -np.inf]


@NEEDED
def test_the_kernels_read_them_where_they_are() -> None:
    scores = pytest.importorskip("workers.sampling.triton_scores")
    assert NUMBERS.fields is not None
    places = {name: field[1] // 4 for name, field in NUMBERS.fields.items()}
    names = ["KEYS", "MODE", "TEMPERATURE", "TOP_K", "TOP_P", "MIN_SCORE"]
    assert places == {name.lower(): getattr(scores, name).value for name in names}


def test_logits_that_it_is_not_made_for_are_refused() -> None:
    sampling = DeviceSampling(V, 2, CPU)
    numbers = torch.zeros(3, sampling.WIDTH, dtype=torch.int32)
    with pytest.raises(ValueError, match=r"\[2, 1000\] logits, not for \[3, 1000\]"):
        sampling.sample(torch.zeros(3, V), numbers)
    with pytest.raises(ValueError, match=r"not for \[2, 999\]"):
        sampling.sample(torch.zeros(2, V - 1), numbers[:2])
    with pytest.raises(ValueError, match="take int32"):
        sampling.sample(torch.zeros(2, V), numbers)
    with pytest.raises(ValueError, match="take int32"):
        sampling.sample(torch.zeros(2, V), numbers[:2].long())


class Launches:
    """In the place of a kernel."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Launches:
        self.grids.append(grid)
        return self

    def __call__(self, *_: object, **__: object) -> None:
        pass


@NEEDED
def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = pytest.importorskip("workers.sampling.triton_kernels")
    launched = {name: Launches() for name in ("tile_argmax", "totals", "choose")}
    for name, launches in launched.items():
        monkeypatch.setattr(kernels, name, launches)

    def send(array: NDArray[np.generic], device: torch.device) -> torch.Tensor:
        return torch.empty(array.shape, dtype=torch.from_numpy(array).dtype, device=device)

    # There is no pinned memory here.
    monkeypatch.setattr(sampler, "send", send)
    cuda = torch.device("cuda")
    # A tensor of this mode has no values: to ask for one raises.
    with FakeTensorMode():
        made = Sampler(len(TAKEN), V, cuda)
        for row, one in enumerate(TAKEN):
            made.admit(row, one, [1, 2])
        assert made.device_sampling is not None
        logits = torch.randn(len(TAKEN), V, device=cuda, dtype=torch.bfloat16)
        rows = list(range(len(TAKEN)))
        output = made.sample(rows, rows, logits)
        assert output.logprobs is not None
        found = [(x.dtype, x.shape) for x in (output.tokens, output.max_logits, output.logprobs)]
        assert found == [(x, (6,)) for x in (torch.int64, torch.float32, torch.float32)]
        assert {x.device.type for x in (output.tokens, output.max_logits, output.logprobs)} == {
            "cuda"
        }
    assert {name: launches.grids for name, launches in launched.items()} == {
        "tile_argmax": [(1, 6)],
        "totals": [(1, 6)],
        "choose": [(6,)],
    }
