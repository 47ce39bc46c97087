"""The scheduler's core and the runner together, on rows that follow grammars.

The texts must be the same whatever the order in which steps are launched and collected, and
whenever the masks come.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator

from tests.helpers.drive import ROWS, Drive
from tests.helpers.loading import load
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tgi_async.grammar.grammar import Grammar, Json, Regex, Special
from tgi_async.scheduler.request import Status
from tgi_async.wire.messages import Sampling
from workers.constraints.vocabulary import Vocabulary
from workers.forward import ForwardBatch, ForwardOutput
from workers.models.loading import Loaded

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "friends": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3},
    },
    "required": ["name", "friends"],
    "additionalProperties": False,
}
PROMPTS = [[5, 6, 7, 8, 9], [11], [12, 13] * 9]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("grammar"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    return load(folder, torch.float32, torch.device("cpu"))


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary(folder, model.spec.vocab_size, [END])


SAMPLINGS = [
    Sampling(),
    Sampling(do_sample=True, temperature=3.0, seed=8),
    Sampling(do_sample=True, temperature=2.0, seed=9, logprobs=True, top_n_tokens=2),
    Sampling(min_tokens=20, end_ids=[END], banned=[[5], [6, 7]]),
]
GRAMMARS: list[Grammar | None] = [Json(SCHEMA), Regex("(abc|[xyz]+;)+"), None]


def run_all(drive: Drive) -> dict[int, list[int]]:
    for prompt in PROMPTS:
        for sampling in SAMPLINGS:
            for grammar in GRAMMARS:
                drive.submit(prompt, 40, grammar, sampling)
    drive.run()
    assert not drive.errors
    return drive.said


@pytest.fixture(scope="module")
def alone(model: Loaded, vocabulary: Vocabulary) -> dict[int, list[int]]:
    return run_all(Drive(model, vocabulary, overlap=False, rows=1))


def test_texts_follow_their_grammars(alone: dict[int, list[int]], vocabulary: Vocabulary) -> None:
    for number, said in alone.items():
        text = vocabulary._tokenizer.decode(said)  # leaves out the end
        if number % 3 == 0:
            Draft202012Validator(SCHEMA).validate(json.loads(text))
        elif number % 3 == 1:
            matcher = vocabulary.engine.matcher(Regex("(abc|[xyz]+;)+"))
            matcher.advance([token for token in said if token != END])
            assert matcher.complete


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("rows", [2, ROWS])
def test_a_text_is_the_same_in_any_batch(
    model: Loaded,
    vocabulary: Vocabulary,
    alone: dict[int, list[int]],
    overlap: bool,
    rows: int,
) -> None:
    assert run_all(Drive(model, vocabulary, overlap=overlap, rows=rows)) == alone


@pytest.fixture
def waiting(model: Loaded, vocabulary: Vocabulary) -> Iterator[Drive]:
    drive = Drive(model, vocabulary, overlap=False, rows=ROWS)
    drive.let_go.clear()
    yield drive
    drive.let_go.set()


def test_the_batch_does_not_wait_for_a_grammar(waiting: Drive, alone: dict[int, list[int]]) -> None:
    held = waiting.submit(PROMPTS[0], 40, GRAMMARS[0], SAMPLINGS[0])
    free = waiting.submit(PROMPTS[0], 40, None, SAMPLINGS[0])
    waiting.run(n_steps=20)
    assert len(waiting.said[free]) > 15
    assert not waiting.said[held]
    assert waiting.n_not_ready > 10
    waiting.let_go.set()
    waiting.run()
    assert waiting.said[held] == alone[0]
    assert waiting.said[free] == alone[2]


def test_a_grammar_that_fails_costs_its_own_row(
    waiting: Drive, alone: dict[int, list[int]]
) -> None:
    waiting.let_go.set()
    broken = waiting.submit(PROMPTS[0], 40, Regex("(a"), SAMPLINGS[0])
    unknown = waiting.submit(PROMPTS[0], 40, Special("<nobody>"), SAMPLINGS[0])
    well = waiting.submit(PROMPTS[0], 40, GRAMMARS[0], SAMPLINGS[0])
    waiting.run()
    assert set(waiting.errors) == {broken, unknown}
    assert waiting.said[well] == alone[0]
    assert all(request.status is Status.ENDED for request in waiting.core.running)


class Spoiling:
    """A model whose logits after one of its tokens are no numbers."""

    def __init__(self, inner: Loaded, hated: int) -> None:
        self.inner, self.hated = inner, hated
        self.spec = inner.spec

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        output = self.inner.forward(batch)
        assert batch.tokens is not None
        output.logits[batch.tokens[batch.wanted] == self.hated] = float("nan")
        return output


@pytest.mark.parametrize("overlap", [False, True])
def test_broken_logits_at_a_jump_cost_their_own_row(
    model: Loaded, vocabulary: Vocabulary, alone: dict[int, list[int]], overlap: bool
) -> None:
    """Where steps overlap, the next one has been computed before the failure is known."""
    spoiling: Any = Spoiling(model, hated=90)
    drive = Drive(spoiling, vocabulary, overlap=overlap)
    broken = drive.submit([90], 40, Regex("the quick brown fox"), SAMPLINGS[0])
    well = drive.submit(PROMPTS[0], 40, GRAMMARS[0], SAMPLINGS[0])
    drive.run()
    assert set(drive.errors) == {broken}
    assert drive.said[well] == alone[0]


def test_the_models_own_log_probabilities_are_reported_where_asked_for(
    model: Loaded, vocabulary: Vocabulary
) -> None:
    """At any temperature: a mask makes the processed distribution another one."""
    reported = []
    for temperature in (1.0, 1.5):
        drive = Drive(model, vocabulary)
        sampling = Sampling(
            do_sample=True, temperature=temperature, seed=3, logprobs=True, model_logprobs=True
        )
        number = drive.submit(PROMPTS[0], 1, Regex("q"), sampling)
        drive.run()
        reported.append((drive.said[number], drive.logprobs[number]))
    assert reported[0][0] == reported[1][0]
    # What is computed beside them may round the last bit differently.
    assert reported[0][1] == pytest.approx(reported[1][1], rel=1e-6)
    first = reported[0][1][0]
    assert first is not None
    assert first < 0
