"""The scheduler's core and the runner together, on rows whose drafts are verified.

Texts and log-probabilities are those without drafts, bit for bit, whatever is drafted.
"""

from __future__ import annotations

from collections.abc import Sequence as Many
from pathlib import Path
from typing import ClassVar, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer

from tests.doubles.foretelling import Foretelling
from tests.helpers.drive import ROWS, Drive
from tests.helpers.loading import load
from tests.helpers.taught_drafts import texts_of
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tests.workers.test_runner_grammar import PROMPTS, SCHEMA
from tgi_async.grammar.grammar import Grammar, Json, Prose, Regex, Sequence, Text
from tgi_async.wire.messages import Sampling
from workers.constraints.vocabulary import Vocabulary
from workers.models.loading import Loaded
from workers.speculation.source import DraftRows, Proposal

SAMPLINGS = [
    Sampling(logprobs=True),
    Sampling(do_sample=True, temperature=3.0, seed=8),
    Sampling(do_sample=True, temperature=2.0, top_p=0.9, seed=9, logprobs=True, top_n_tokens=2),
    Sampling(repetition_penalty=1.5, frequency_penalty=0.7, logprobs=True),
    Sampling(
        output_frequency_penalty=1.0, do_sample=True, seed=3, model_logprobs=True, logprobs=True
    ),
    Sampling(min_tokens=20, end_ids=[END], banned=[[5], [6, 7]], watermark=True),
]
GRAMMARS: list[Grammar | None] = [
    None,
    Json(SCHEMA),
    Regex("(abc|[xyz]+;)+"),
    # Thoughts, whose end comes within drafts.
    Sequence([Prose("</t>"), Text("<1"), Regex("[2-9]{3,5}>")]),
]


class Said(NamedTuple):
    texts: dict[int, list[int]]
    logprobs: dict[int, list[float | None]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("drafts"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(scope="module", params=["fused", "transformers"])
def model(folder: Path, request: pytest.FixtureRequest) -> Loaded:
    return load(folder, torch.float32, torch.device("cpu"), implementation=request.param)


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary(folder, model.spec.vocab_size, [END])


def run_all(drive: Drive) -> Said:
    for prompt in PROMPTS:
        for sampling in SAMPLINGS:
            for grammar in GRAMMARS:
                drive.submit(prompt, 40, grammar, sampling)
    drive.run()
    assert not drive.errors
    return Said(drive.said, drive.logprobs)


@pytest.fixture(scope="module")
def alone(model: Loaded, vocabulary: Vocabulary) -> Said:
    return run_all(Drive(model, vocabulary, rows=1))


@pytest.fixture(scope="module")
def whole(alone: Said) -> list[list[int]]:
    """The texts with their prompts."""
    prompts = [prompt for prompt in PROMPTS for _ in SAMPLINGS for _ in GRAMMARS]
    return [prompt + alone.texts[number] for number, prompt in enumerate(prompts)]


def test_thoughts_end_in_texts_that_go_on(folder: Path, alone: Said) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    ended = [tokenizer.decode(text).partition("</t>")[2] for text in alone.texts.values()]
    assert sum(rest.startswith("<1") for rest in ended) > 9


def check(drive: Drive, alone: Said) -> None:
    said = run_all(drive)
    assert said.texts == alone.texts
    for number, logprobs in alone.logprobs.items():
        assert said.logprobs[number] == pytest.approx(logprobs, abs=1e-4)
    assert 0 < drive.n_accepted < drive.n_drafts


@pytest.mark.parametrize("rows", [1, ROWS])
@pytest.mark.parametrize("max_drafts", [1, 3, 8])
def test_texts_are_those_without_drafts(
    model: Loaded,
    vocabulary: Vocabulary,
    alone: Said,
    whole: list[list[int]],
    rows: int,
    max_drafts: int,
) -> None:
    source = Foretelling(whole)
    drive = Drive(model, vocabulary, rows=rows, budget=40, drafts=source, max_drafts=max_drafts)
    check(drive, alone)
    # Each token was observed once.
    assert source.n_observed >= sum(map(len, alone.texts.values()))


def test_so_they_are_where_all_drafts_are_right(
    model: Loaded, vocabulary: Vocabulary, alone: Said, whole: list[list[int]]
) -> None:
    drive = Drive(
        model, vocabulary, rows=1, budget=40, drafts=Foretelling(whole, wrong_in=0), max_drafts=8
    )
    check(drive, alone)
    assert drive.n_accepted > 0.6 * drive.n_drafts


def test_so_they_are_where_rows_are_preempted(
    model: Loaded, vocabulary: Vocabulary, alone: Said, whole: list[list[int]]
) -> None:
    drive = Drive(
        model, vocabulary, budget=40, n_blocks=20, drafts=Foretelling(whole), max_drafts=4
    )
    check(drive, alone)
    assert drive.core.n_preemptions > 0


def test_in_bfloat16_the_fused_decoder_gives_the_same_bits(
    folder: Path, vocabulary: Vocabulary
) -> None:
    model = load(folder, torch.bfloat16, torch.device("cpu"), implementation="fused")

    def said_by(drive: Drive) -> Said:
        for prompt in PROMPTS:
            for sampling in SAMPLINGS:
                drive.submit(prompt, 60, None, sampling)
        drive.run()
        assert not drive.errors
        return Said(drive.said, drive.logprobs)

    alone = said_by(Drive(model, vocabulary, rows=1))
    prompts = [prompt for prompt in PROMPTS for _ in SAMPLINGS]
    source = Foretelling([prompt + alone.texts[at] for at, prompt in enumerate(prompts)])
    drive = Drive(model, vocabulary, budget=40, drafts=source, max_drafts=6)
    assert said_by(drive) == alone
    assert 0 < drive.n_accepted < drive.n_drafts


class Watching(Foretelling):
    """A source that remembers the hidden states it was given, with their texts."""

    wants_hidden: ClassVar[bool] = True

    def __init__(self, texts: Many[list[int]]) -> None:
        super().__init__(texts)
        self.seen: list[tuple[list[int], torch.Tensor]] = []

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        assert wanted.hidden is not None
        for row, state in zip(wanted.rows, wanted.hidden, strict=True):
            self.seen.append((list(self._rows[row]), state))
        return super().propose(wanted)


@pytest.mark.parametrize("max_drafts", [2, 6])
def test_a_source_is_given_the_state_where_the_last_token_was_sampled(
    model: Loaded, vocabulary: Vocabulary, alone: Said, whole: list[list[int]], max_drafts: int
) -> None:
    source = Watching(whole)
    check(Drive(model, vocabulary, budget=40, drafts=source, max_drafts=max_drafts), alone)
    for text, state in source.seen:
        due = texts_of(model, [text])[0].hidden[len(text) - 2]
        torch.testing.assert_close(state, due, atol=1e-4, rtol=1e-4)
