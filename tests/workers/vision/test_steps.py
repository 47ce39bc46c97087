"""What a runner gives a model where rows have images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.workers.vision.test_rows import PLACEHOLDER, PROMPT, Sums, admit, image
from tgi_async.wire.messages import Image, Run, Span, Step
from workers.attention.cache import PagedCache
from workers.forward import ForwardBatch, ForwardOutput, Vision
from workers.runner import Runner
from workers.sampling import Sampler
from workers.table import RowTable
from workers.vision.rows import RowImages

CPU = torch.device("cpu")


class Seeing:
    """A double of a model that keeps what it is given, and finds all tokens alike."""

    def __init__(self) -> None:
        self.batches: list[ForwardBatch] = []

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        self.batches.append(batch)
        return ForwardOutput(torch.zeros(len(batch.wanted), PLACEHOLDER))


def runner_of(model: Seeing, vision: Vision) -> Runner:
    cache = PagedCache(1, 8, 16, 1, 16, torch.float32)
    table = RowTable(4, 64, 16, CPU)
    images = RowImages(vision, 4, CPU)
    return Runner(model, table, cache, Sampler(4, PLACEHOLDER, CPU), images=images)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Image]:
    return [image(tmp_path, 1, 1, 5, 10, 11, 12), image(tmp_path, 2, 7, 10, 20, 21, 22)]


def test_placeholders_have_rows_and_need_no_embedding(pictures: list[Image]) -> None:
    model = Seeing()
    runner = runner_of(model, Sums())
    asked = admit(0, pictures)
    done = runner.collect(runner.launch(Step(1, [], [asked], [], [Run(0, len(PROMPT))])))
    (batch,) = model.batches
    assert batch.inserted is not None
    assert batch.tokens[batch.inserted.at].tolist() == [0] * 6
    assert batch.tokens.tolist() == [0 if one == PLACEHOLDER else one for one in PROMPT]
    assert done.encoded is not None
    assert (done.encoded.n, len(done.sampled)) == (2, 1)
    assert done.encoded.seconds > 0
    # A decode is like any other.
    done = runner.collect(runner.launch(Step(2, [], [], [], [Run(0, 1)])))
    assert model.batches[1].inserted is None
    assert done.encoded is None


def test_a_bad_image_fails_its_row_alone(pictures: list[Image], tmp_path: Path) -> None:
    model = Seeing()
    runner = runner_of(model, Sums())
    rows = [admit(0, pictures), admit(1, [image(tmp_path, 3, 1, 5, -1, 0, 0)]), admit(2, [])]
    runs = [Run(row, len(PROMPT)) for row in range(3)]
    done = runner.collect(runner.launch(Step(1, [], rows, [], runs)))
    assert sorted(one.row for one in done.sampled) == [0, 2]
    assert [(one.row, one.message) for one in done.errors] == [(1, "numbers are at least 0")]


def test_chunks_have_the_spans_that_lie_within_them(pictures: list[Image]) -> None:
    model = Seeing()
    runner = runner_of(model, Sums())
    asked = admit(0, pictures)
    asked.spans.extend([Span(1, 5), Span(7, 10)])
    runner.collect(runner.launch(Step(1, [], [asked], [], [Run(0, 6)])))
    runner.collect(runner.launch(Step(2, [], [], [], [Run(0, 5)])))
    chunks = [batch.attention.prefills[0] for batch in model.batches]
    assert [(chunk.length, chunk.spans) for chunk in chunks] == [(6, ((1, 5),)), (11, ((7, 10),))]
