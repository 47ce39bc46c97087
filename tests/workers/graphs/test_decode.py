"""Decode steps that are replayed: what that means for the core, for grammars, for several ranks.

The device's part is done by doubles on the host; tests/gpu/test_graphs.py has the real one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.doubles.device_doubles import DeviceAttention, HostSampling, Replaying
from tests.doubles.foretelling import Foretelling
from tests.helpers.drive import ROWS, Drive
from tests.helpers.loading import load
from tests.helpers.rank_graphs import N_TOKENS
from tests.helpers.rank_graphs import PROMPTS as PROMPTS_OF_RANKS
from tests.helpers.tiny_llama import save_tiny_llama
from tests.helpers.tiny_tokenizer import END, save_tiny_tokenizer
from tests.workers.test_runner import greedy
from tests.workers.test_runner_grammar import GRAMMARS, PROMPTS, SAMPLINGS, run_all
from workers.attention.cache import PagedCache
from workers.attention.gather import TorchAttention
from workers.attention.layer import AttentionShape
from workers.constraints.vocabulary import Vocabulary
from workers.forward import ForwardBatch, ForwardOutput
from workers.graphs.decode import DecodeGraphs, GraphPlan, SampledRows, default_sizes
from workers.models.loading import Loaded
from workers.ranks import RankFailed, Ranks
from workers.table import RowTable


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("grammar"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(scope="module")
def model(folder: Path) -> Loaded:
    cpu = torch.device("cpu")
    return load(folder, torch.float32, cpu, "transformers", attention=DeviceAttention)


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary(folder, model.spec.vocab_size, [END])


@pytest.fixture(scope="module")
def alone(model: Loaded, vocabulary: Vocabulary) -> dict[int, list[int]]:
    return run_all(Drive(model, vocabulary, rows=1))


@pytest.mark.parametrize(("overlap", "rows"), [(False, ROWS), (True, 3)])
def test_texts_with_and_without_grammars_are_the_same(
    model: Loaded,
    vocabulary: Vocabulary,
    alone: dict[int, list[int]],
    overlap: bool,
    rows: int,
) -> None:
    drive = Drive(model, vocabulary, overlap=overlap, rows=rows, graphs=True)
    assert run_all(drive) == alone
    assert drive.graphs is not None
    assert {2, 4} <= set(drive.graphs.ran)


@pytest.mark.parametrize(("rows", "max_drafts"), [(1, 3), (2, 1), (ROWS, 3)])
def test_drafts_are_verified_in_graphs_that_have_room_for_them(
    model: Loaded,
    vocabulary: Vocabulary,
    alone: dict[int, list[int]],
    rows: int,
    max_drafts: int,
) -> None:
    prompts = [prompt for prompt in PROMPTS for _ in SAMPLINGS for _ in GRAMMARS]
    source = Foretelling([prompt + alone[number] for number, prompt in enumerate(prompts)])
    drive = Drive(
        model,
        vocabulary,
        rows=rows,
        budget=40,
        graphs=True,
        drafts=source,
        max_drafts=max_drafts,
    )
    assert run_all(drive) == alone
    assert 0 < drive.n_accepted < drive.n_drafts
    assert drive.graphs is not None
    assert 4 in drive.graphs.ran


@pytest.mark.parametrize("overlap", [False, True])
def test_a_late_row_keeps_its_last_token_while_others_are_replayed(
    model: Loaded, vocabulary: Vocabulary, alone: dict[int, list[int]], overlap: bool
) -> None:
    drive = Drive(model, vocabulary, overlap=overlap, rows=ROWS, graphs=True)
    drive.let_go.clear()
    held = drive.submit(PROMPTS[0], 40, GRAMMARS[0], SAMPLINGS[0])
    free = drive.submit(PROMPTS[0], 40, None, SAMPLINGS[0])
    drive.run(12)
    assert drive.said[held] == []
    assert len(drive.said[free]) > 5
    assert drive.n_not_ready
    drive.let_go.set()
    drive.run()
    assert drive.said == {held: alone[0], free: alone[2]}


def test_other_ranks_replay_what_rank_0_replays(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "llama")
    command = [sys.executable, "-m", "tests.helpers.rank_graphs"]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(model), str(tmp_path)]) for rank in range(2)
    ]
    try:
        assert [process.wait(120) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    reference = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    said = json.loads((tmp_path / "said.json").read_text())
    assert said == [
        greedy(reference, PROMPTS_OF_RANKS[0], N_TOKENS),
        greedy(reference, PROMPTS_OF_RANKS[1], N_TOKENS - 1),
    ]
    for rank in range(2):
        assert json.loads((tmp_path / f"ran-{rank}.json").read_text()) == [2, 2, 1, 2, 2]


class Failing(Replaying):
    """Prepares, or captures, so many graphs and no more."""

    def __init__(self, n_prepared: int, n_captured: int) -> None:
        self.left = {"prepare": n_prepared, "capture": n_captured}

    def _try(self, what: str) -> None:
        if not self.left[what]:
            raise RuntimeError(f"cannot {what} it\nat all")
        self.left[what] -= 1

    def prepare(self, work: Callable[[], Any]) -> None:
        self._try("prepare")
        super().prepare(work)

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        self._try("capture")
        return super().capture(work)


def graphs_of(
    capture: Failing, ranks: Ranks | None = None, backend: type[TorchAttention] = DeviceAttention
) -> DecodeGraphs:
    class Zeros:
        def forward(self, batch: ForwardBatch) -> ForwardOutput:
            return ForwardOutput(torch.zeros(len(batch.wanted), 11))

    cache = PagedCache(1, 4, 4, 1, 16, torch.float32)
    rows = SampledRows(RowTable(4, 16, 4, torch.device("cpu")), HostSampling())
    attention = backend(AttentionShape(1, 1, 16, torch.float32))
    return DecodeGraphs(Zeros(), attention, cache, GraphPlan(capture, [1, 2, 4]), 16, rows, ranks)


@pytest.mark.parametrize(
    ("capture", "sizes", "notes"),
    [
        (Failing(3, 3), [1, 2, 4], []),
        (
            Failing(3, 2),
            [2, 4],
            ["decode steps of up to 1 rows are filled up to 2: cannot"],
        ),
        (Failing(1, 3), [4], ["decode steps of up to 2 rows are filled up to 4: cannot"]),
        (Failing(3, 0), [], ["decode steps run without CUDA graphs, slower: cannot capture it"]),
    ],
)
def test_graphs_that_were_recorded_stay_when_another_cannot_be(
    capture: Failing, sizes: list[int], notes: list[str]
) -> None:
    graphs = graphs_of(capture)
    found = graphs.capture()
    assert graphs.sizes == sizes
    assert len(found) == len(notes)
    assert all(one.startswith(start) for one, start in zip(found, notes, strict=True))


def test_a_rank_that_fails_where_others_wait_for_it_falls_out() -> None:
    class Two(Ranks):
        def __init__(self) -> None:
            pass

        def broadcast(self, values: torch.Tensor) -> torch.Tensor:
            return values

        def all_reduce_min(self, n: int) -> int:
            return n

    with pytest.raises(RankFailed, match="4 rows failed: cannot prepare"):
        graphs_of(Failing(0, 3), Two()).capture()
    graphs = graphs_of(Failing(3, 1), Two())
    graphs.capture()
    assert graphs.sizes == [4]


def test_attention_that_cannot_be_captured_runs_without_graphs_and_says_so() -> None:
    graphs = graphs_of(Failing(3, 3), backend=TorchAttention)
    (note,) = graphs.capture()
    assert "without CUDA graphs, slower: torch attention cannot be captured" in note
    assert graphs.sizes == []


def test_all_graphs_leave_their_logits_in_one_place() -> None:
    graphs = graphs_of(Failing(3, 3))
    graphs.capture()
    assert len({one.outputs[0].data_ptr() for one in graphs._graphs}) == 1


def test_numbers_of_rows_that_have_a_graph() -> None:
    assert default_sizes(1) == [1]
    assert default_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert default_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert default_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 96, 100]
