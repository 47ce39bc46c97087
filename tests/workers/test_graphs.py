"""Decode steps that are replayed: what that means for the core, for grammars, for several ranks.

The device's part is done by doubles on the host; tests/gpu/test_graphs.py has the real one.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.workers.device_doubles import DeviceAttention
from tests.workers.drive import ROWS, Drive
from tests.workers.rank_graphs import N_TOKENS
from tests.workers.rank_graphs import PROMPTS as PROMPTS_OF_RANKS
from tests.workers.test_runner import greedy
from tests.workers.test_runner_grammar import GRAMMARS, PROMPTS, SAMPLINGS, run_all
from tests.workers.tiny_llama import save_tiny_llama
from tests.workers.tiny_tokenizer import END, save_tiny_tokenizer
from workers.attention import registry
from workers.constraints.vocabulary import Vocabulary
from workers.graphs.decode import default_sizes
from workers.models.loading import Loaded, load


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, size = save_tiny_tokenizer(tmp_path_factory.mktemp("grammar"))
    return save_tiny_llama(folder, vocabulary=size)


@pytest.fixture(scope="module")
def model(folder: Path) -> Iterator[Loaded]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(registry.ATTENTIONS, "cpu", DeviceAttention)
        yield load(folder, torch.float32, torch.device("cpu"), implementation="transformers")


@pytest.fixture(scope="module")
def vocabulary(folder: Path, model: Loaded) -> Vocabulary:
    return Vocabulary("llguidance", folder, model.shape.vocab_size, [END])


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
    assert drive.n_late
    drive.let_go.set()
    drive.run()
    assert drive.said == {held: alone[0], free: alone[2]}


def test_other_ranks_replay_what_rank_0_replays(tmp_path: Path) -> None:
    model = save_tiny_llama(tmp_path / "llama")
    command = [sys.executable, "-m", "tests.workers.rank_graphs"]
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


def test_numbers_of_rows_that_have_a_graph() -> None:
    assert default_sizes(1) == [1]
    assert default_sizes(20) == [1, 2, 4, 8, 16, 20]
    assert default_sizes(32) == [1, 2, 4, 8, 16, 32]
    assert default_sizes(100) == [1, 2, 4, 8, 16, 32, 64, 96, 100]
