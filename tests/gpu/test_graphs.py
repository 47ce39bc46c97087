"""Decode steps as graphs: CUDA's on a GPU; elsewhere run again by the host, kernels interpreted."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.doubles.device_doubles import Replaying
from tests.doubles.foretelling import Foretelling
from tests.helpers.tiny_llama import save_tiny_llama
from tests.workers.test_runner import LONG, MOST_DRAFTS, SHORT, Batch, greedy, tokens_of
from tgi_async.wire.messages import Admit, Grow, Sampling

pytest.importorskip("triton", reason="the package triton is not installed")

from tests.helpers.loading import load
from workers.attention.triton_paged import TritonAttention
from workers.graphs.capture import CudaGraphCapture, GraphCapture
from workers.graphs.input_buffers import DEPTH, InputBuffers
from workers.models.loading import Loaded
from workers.transfer import Fetched

DRAWN = Sampling(do_sample=True, seed=7, temperature=0.8, logprobs=True)
ELSEWHERE = Sampling(repetition_penalty=1.3, logprobs=True)
"""Not sampled by the graph."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


@pytest.fixture(scope="module", params=["transformers"])
def model(folder: Path, device: str, request: pytest.FixtureRequest) -> Loaded:
    where = torch.device(device)
    return load(folder, torch.float32, where, request.param, attention=TritonAttention)


@pytest.fixture
def capture(device: str) -> GraphCapture:
    return CudaGraphCapture() if device == "cuda" else Replaying()


@pytest.fixture
def replays(capture: GraphCapture, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each graph that ran had."""
    from workers.graphs.decode import DecodeGraphs

    found: list[int] = []
    run = DecodeGraphs._run

    def counting(self, graph, size):  # type: ignore[no-untyped-def]
        found.append(graph.n_rows)
        return run(self, graph, size)

    monkeypatch.setattr(DecodeGraphs, "_run", counting)
    return found


def test_rows_that_come_and_go_say_what_each_sequence_says_alone(
    model: Loaded,
    reference: PreTrainedModel,
    device: str,
    capture: GraphCapture,
    replays: list[int],
) -> None:
    batch = Batch(model, torch.device(device), capture)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def step(run: dict[int, int], *admit: Admit, release: tuple[int, ...] = ()) -> None:
        for row, token in tokens_of(batch.step(run, *admit, release=release)).items():
            found[row].append(token)

    step({0: 3}, batch.admit(0, SHORT))
    step({0: 1})
    step({0: 1, 1: 30}, batch.admit(1, LONG))
    step({1: 1, 0: 1})
    step({2: 30, 0: 1, 1: 1}, batch.admit(2, LONG[::-1]))
    step({2: 1, 0: 1, 1: 1})
    step({1: 1, 2: 1}, release=(0,))
    assert found == {
        0: greedy(reference, SHORT, 6),
        1: greedy(reference, LONG, 5),
        2: greedy(reference, LONG[::-1], 3),
    }
    assert replays == [1, 2, 5, 2]


@pytest.mark.full
@pytest.mark.parametrize("model", ["fused"], indirect=True)
def test_the_fused_decoder_says_so_too(
    model: Loaded,
    reference: PreTrainedModel,
    device: str,
    capture: GraphCapture,
    replays: list[int],
) -> None:
    batch = Batch(model, torch.device(device), capture)
    done = [batch.step({0: 3, 1: 2}, batch.admit(0, SHORT), batch.admit(1, LONG[:2]))]
    done += [batch.step({0: 1, 1: 1}), batch.step({1: 1})]
    assert [tokens_of(one)[1] for one in done] == greedy(reference, LONG[:2], 3)
    assert [tokens_of(one)[0] for one in done[:2]] == greedy(reference, SHORT, 2)
    assert replays == [2, 1]


def test_what_a_row_samples_is_what_it_samples_without_graphs(
    model: Loaded, device: str, capture: GraphCapture, replays: list[int]
) -> None:
    asked = {0: Sampling(logprobs=True), 1: DRAWN, 2: ELSEWHERE, 3: Sampling()}
    done = []
    for one in (Batch(model, torch.device(device), capture), Batch(model, torch.device(device))):
        rows = {
            row: one.admit(row, LONG[row : row + 3], sampling=sampling)
            for row, sampling in asked.items()
        }
        steps = [one.step(dict.fromkeys(rows, 3), *rows.values())]
        steps += [one.step({3: 1, 1: 1, 0: 1, 2: 1})]
        # Alone, and then without the one that a graph does not sample.
        steps += [one.step({2: 1}), one.step({0: 1, 1: 1, 3: 1})]
        done.append(steps)
    assert len(replays) == 3
    for ours, theirs in zip(*done, strict=True):
        assert not ours.errors
        assert tokens_of(ours) == tokens_of(theirs)
        for one, other in zip(ours.sampled, theirs.sampled, strict=True):
            assert one.row == other.row
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


@pytest.mark.parametrize("sampling", [Sampling(logprobs=True), DRAWN, ELSEWHERE])
def test_drafts_are_verified_in_graphs_and_change_nothing(
    model: Loaded, device: str, capture: GraphCapture, replays: list[int], sampling: Sampling
) -> None:
    where, n = torch.device(device), 12
    plain = Batch(model, where)
    text, logprobs = list(SHORT), []
    done = plain.step({0: 3}, plain.admit(0, SHORT, sampling=sampling))
    for _ in range(n):
        text += done.sampled[0].tokens
        logprobs += done.sampled[0].logprobs
        done = plain.step({0: 1})

    batch = Batch(model, where, capture, Foretelling([text], wrong_in=4))
    found = [batch.step({0: 3}, batch.admit(0, SHORT, sampling=sampling)).sampled[0]]
    while sum(len(one.tokens) for one in found) < n:
        found.append(batch.step({0: 1 + MOST_DRAFTS}).sampled[0])

    assert [token for one in found for token in one.tokens][:n] == text[3:]
    assert [one for each in found for one in each.logprobs][:n] == pytest.approx(logprobs, abs=1e-4)
    assert 0 < sum(one.n_computed for one in found) < sum(one.n_drafts for one in found)
    assert 5 in replays


def test_a_step_is_launched_before_the_one_before_it_is_read(
    model: Loaded, reference: PreTrainedModel, device: str, capture: GraphCapture
) -> None:
    batch = Batch(model, torch.device(device), capture)
    batch.step({0: 3, 1: 7}, batch.admit(0, SHORT), batch.admit(1, LONG[:7]))
    launched = [batch.launch({0: 1, 1: 1}), batch.launch({0: 1}), batch.launch({1: 1, 0: 1})]
    done = [tokens_of(batch.runner.collect(one)) for one in launched]
    assert [one[0] for one in done] == greedy(reference, SHORT, 4)[1:]
    assert [one[1] for one in done if 1 in one] == greedy(reference, LONG[:7], 3)[1:]


def test_texts_that_are_too_long_for_a_graph_together_run_without(
    model: Loaded,
    reference: PreTrainedModel,
    device: str,
    capture: GraphCapture,
    replays: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("workers.attention.device_batch.MOST_BLOCKS", 8)
    batch = Batch(model, torch.device(device), capture)
    found = [batch.step({0: 30}, batch.admit(0, LONG))]
    found += [batch.step({0: 1}) for _ in range(4)]  # 8 blocks of 4 positions are full at 32
    assert [tokens_of(one)[0] for one in found] == greedy(reference, LONG, 5)
    assert replays == [1] * 2


def test_more_rows_than_the_largest_graph_run_without(
    model: Loaded,
    reference: PreTrainedModel,
    device: str,
    capture: GraphCapture,
    replays: list[int],
) -> None:
    batch = Batch(model, torch.device(device), capture)
    admitted = [batch.admit(row, SHORT) for row in range(6)]
    batch.step(dict.fromkeys(range(6), 3), *admitted)
    done = batch.step(dict.fromkeys(range(6), 1))
    assert replays == []
    assert set(tokens_of(done).values()) == {greedy(reference, SHORT, 2)[1]}


def test_numbers_outside_the_cache_never_reach_the_device(
    model: Loaded, device: str, capture: GraphCapture, replays: list[int]
) -> None:
    batch = Batch(model, torch.device(device), capture)
    tokens = LONG[:8]
    batch.step({0: 8}, Admit(row=0, tokens=tokens, n_prompt=8, n_cached=0, blocks=[1, 2],
                             sampling=Sampling()))  # fmt: skip
    with pytest.raises(ValueError, match="allowed are"):
        batch.step({0: 1}, grow=[Grow(0, [10**6])])
    assert replays == []


def test_work_that_cannot_be_recorded_runs_without_graphs_and_says_so(
    model: Loaded, reference: PreTrainedModel, device: str
) -> None:
    class Refusing(Replaying):
        def capture(self, work):  # type: ignore[no-untyped-def]
            raise RuntimeError("operation not permitted when stream is capturing\nmore")

    from workers.graphs.decode import DecodeGraphs

    notes: list[list[str]] = []

    class Noting(DecodeGraphs):
        def capture(self, seconds: float = 60.0) -> list[str]:
            notes.append(super().capture(seconds))
            return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.workers.test_runner.DecodeGraphs", Noting)
        batch = Batch(model, torch.device(device), Refusing())
    assert notes == [
        ["decode steps run without CUDA graphs, slower: operation not permitted when stream is "
         "capturing"]
    ]  # fmt: skip
    found = [batch.step({0: 3}, batch.admit(0, SHORT)), batch.step({0: 1}), batch.step({0: 1})]
    assert [tokens_of(one)[0] for one in found] == greedy(reference, SHORT, 3)


def test_when_time_is_up_steps_are_filled_up_to_the_next_larger_graph(
    model: Loaded,
    reference: PreTrainedModel,
    device: str,
    capture: GraphCapture,
    replays: list[int],
) -> None:
    from workers.graphs.decode import DecodeGraphs

    notes: list[str] = []

    class Late(DecodeGraphs):
        def capture(self, seconds: float = 60.0) -> list[str]:
            notes.extend(super().capture(0.0))
            return []

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.workers.test_runner.DecodeGraphs", Late)
        batch = Batch(model, torch.device(device), capture)
    (note,) = notes
    assert note.startswith("decode steps of 1 to 2 rows are filled up to 5: ")
    found = [batch.step({0: 3}, batch.admit(0, SHORT)), batch.step({0: 1}), batch.step({0: 1})]
    assert [tokens_of(one)[0] for one in found] == greedy(reference, SHORT, 3)
    assert replays == [5, 5]


def test_what_waits_for_the_device_is_not_recorded_and_harms_nothing(cuda: torch.device) -> None:
    x = torch.arange(4.0, device=cuda)

    def waiting() -> tuple[torch.Tensor, ...]:
        return (x * float(x.sum()),)

    before = torch.cuda.current_stream()
    capture = CudaGraphCapture()
    capture.prepare(waiting)
    with pytest.raises(RuntimeError, match="captur") as caught:
        capture.capture(waiting)
    assert not isinstance(caught.value, torch.AcceleratorError)
    assert torch.cuda.current_stream() == before
    capture = CudaGraphCapture()
    capture.prepare(lambda: (x * 2,))
    replay, (twice,) = capture.capture(lambda: (x * 2,))
    x += 1
    replay()
    assert twice.tolist() == [2.0, 4.0, 6.0, 8.0]
    large = torch.empty(2**26, dtype=torch.uint8, device=cuda)
    reserved = torch.cuda.memory_reserved()
    del large
    # Memory is only given back while nothing is captured.
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= reserved - 2**26


def test_numbers_that_a_slow_device_has_not_taken_over_are_not_written_over(
    cuda: torch.device,
) -> None:
    buffers = InputBuffers(2**20, cuda)
    found = []
    torch.cuda._sleep(2 * 10**9)  # about a second
    for step in range(2 * DEPTH):
        buffers.next()[:] = step
        buffers.send(2**20)
        found.append(buffers.on_device.clone())
    for step, numbers in enumerate(found):
        assert [int(x) for x in numbers.aminmax()] == [step, step]


def test_what_was_fetched_is_of_its_own_step(cuda: torch.device) -> None:
    x = torch.zeros(2**20, device=cuda)
    torch.cuda._sleep(2 * 10**9)
    fetched = []
    for _ in range(4):
        fetched.append(Fetched([x]))
        x += 1
    assert not fetched[0].ready
    for step, one in enumerate(fetched):
        assert [int(x) for x in one.tensors()[0].aminmax()] == [step, step]
    assert all(one.ready for one in fetched)
