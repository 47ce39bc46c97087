"""What fails once in a step costs nobody anything; what fails for all rows is no row's fault."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers.loading import load
from tests.helpers.tiny_llama import save_tiny_llama
from tests.workers.test_runner import CPU, LONG, SHORT, Batch, tokens_of
from tgi_async.wire.messages import Sampling
from workers.errors import RowsLost
from workers.forward import ForwardBatch, ForwardOutput
from workers.models.loading import Loaded
from workers.sampling.output import FetchedOutput, SamplerOutput
from workers.sampling.penalties import Penalties

PENALIZED = Sampling(output_frequency_penalty=30.0)
"""A token that is counted twice is not sampled again."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return load(save_tiny_llama(tmp_path_factory.mktemp("llama")), torch.float32, CPU)


class Failing:
    """A model that fails so many times, from its next pass on."""

    def __init__(self, inner: Loaded) -> None:
        self.inner = inner
        self.left = 0
        self.error: type[Exception] = RuntimeError

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        if self.left:
            self.left -= 1
            raise self.error("no memory")
        return self.inner.forward(batch)


def texts(batch: Batch, rows: int, fail_at: int = -1, failing: Failing | None = None) -> list[Any]:
    """The tokens of a few steps of so many rows; before one of them `failing` is told to."""
    admits = [batch.admit(row, [*LONG[:20], row], sampling=PENALIZED) for row in range(rows)]
    found = []
    for at in range(6):
        if at == fail_at and failing is not None:
            failing.left = 1
        run = dict.fromkeys(range(rows), 1 if at else 21)
        done = batch.step(run, *(admits if not at else []))
        assert done.errors == []
        found.append(tokens_of(done))
    return found


@pytest.mark.parametrize("error", [RuntimeError, torch.OutOfMemoryError, MemoryError])
@pytest.mark.parametrize("rows", [1, 3])
def test_a_pass_that_fails_once_is_run_again(
    model: Loaded, rows: int, error: type[Exception]
) -> None:
    expected = texts(Batch(model), rows)
    for at in (0, 3):
        failing = Failing(model)
        failing.error = error
        assert texts(Batch(failing), rows, at, failing) == expected
        assert failing.left == 0


def test_a_pass_that_fails_for_every_row_is_no_rows_fault(model: Loaded) -> None:
    failing = Failing(model)
    batch = Batch(failing)
    batch.step({0: 3}, batch.admit(0, SHORT))
    failing.left = 10
    with pytest.raises(RowsLost, match=r"all 2 rows of step 2 fail: no memory"):
        batch.step({0: 1, 1: 30}, batch.admit(1, LONG))


def test_a_row_that_is_alone_fails_at_its_second_try(model: Loaded) -> None:
    failing = Failing(model)
    batch = Batch(failing)
    failing.left = 2
    done = batch.step({0: 3}, batch.admit(0, SHORT))
    assert [(error.row, error.message) for error in done.errors] == [(0, "no memory")]


@pytest.mark.parametrize("rows", [1, 3])
def test_sampling_that_fails_once_is_done_again(
    model: Loaded, monkeypatch: pytest.MonkeyPatch, rows: int
) -> None:
    expected = texts(Batch(model), rows)
    left = [3, 4]  # of calls
    apply = Penalties.apply

    def failing(self: Penalties, *given: Any) -> None:
        left[0] += 1
        if left[0] == left[1]:
            raise torch.OutOfMemoryError("no memory")
        apply(self, *given)

    monkeypatch.setattr(Penalties, "apply", failing)
    for left[1] in (4, 7):
        left[0] = 3
        assert texts(Batch(model), rows) == expected


@pytest.mark.parametrize("place", ["record", "fetch"])
def test_tokens_that_are_counted_are_not_sampled_again(
    model: Loaded, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    def failing(*given: Any) -> FetchedOutput:
        raise torch.OutOfMemoryError("no memory")

    owner = Penalties if place == "record" else SamplerOutput
    batch = Batch(model)
    batch.step({0: 3}, batch.admit(0, SHORT, sampling=PENALIZED))
    monkeypatch.setattr(owner, place, failing)
    with pytest.raises(RowsLost, match="sampled tokens were lost: no memory"):
        batch.step({0: 1})
