"""Steps of the runner against transformers' own forward of each sequence alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from tests.helpers.loading import load
from tests.helpers.tiny_llama import VOCABULARY, save_tiny_llama
from tgi_async.wire.messages import (
    Admit,
    Grow,
    Run,
    Sampling,
    Step,
    StepCost,
    StepDone,
    TopToken,
)
from tgi_async.wire.step_costs import StepCosts
from workers.attention.cache import PagedCache
from workers.forward import ForwardBatch, ForwardOutput
from workers.graphs.capture import GraphCapture
from workers.graphs.decode import DecodeGraphs, GraphPlan, SampledRows
from workers.launched_step import LaunchedStep
from workers.models.loading import Loaded
from workers.runner import Runner
from workers.sampling import Sampler
from workers.speculation.source import DraftSource
from workers.speculation.speculation import Speculation
from workers.table import RowTable

CPU = torch.device("cpu")
BLOCK_SIZE = 4
N_BLOCKS = 60
MOST_DRAFTS = 4
FREE = StepCosts([StepCost(1, 1.0), StepCost(1000, 1.001)])
"""Further positions cost nothing, so that all drafts are verified."""
LONG = [3 + 7 * i % 90 for i in range(30)]
SHORT = [11, 12, 13]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module", params=["fused", "transformers"])
def model(folder: Path, request: pytest.FixtureRequest) -> Loaded:
    return load(folder, torch.float32, CPU, implementation=request.param)


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


class Wrapped:
    """A model, and one of its tokens that it cannot stand."""

    def __init__(self, inner: Loaded, hated: int = 96) -> None:
        self.inner = inner
        self.hated = hated
        self.n_forwards = 0

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        self.n_forwards += 1
        return self.inner.forward(batch)


class Raising(Wrapped):
    """It fails as a whole if the token is in the batch."""

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        assert batch.tokens is not None
        if (batch.tokens == self.hated).any():
            raise RuntimeError("out of registers")
        return super().forward(batch)


class Spoiling(Wrapped):
    """Its logits after the token are no numbers."""

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        output = super().forward(batch)
        assert batch.tokens is not None
        output.logits[batch.tokens[batch.wanted] == self.hated] = float("nan")
        return output


class Batch:
    """A runner, and blocks for its rows. With a `capture`, for a GPU or what passes for one, its
    decode steps of up to 5 rows are graphs."""

    def __init__(
        self,
        model: Any,
        device: torch.device = CPU,
        capture: GraphCapture | None = None,
        drafts: DraftSource | None = None,
    ) -> None:
        cache = PagedCache(2, N_BLOCKS, BLOCK_SIZE, 2, 16, torch.float32, device)
        for pool in (*cache.keys, *cache.values):
            pool.fill_(float("nan"))  # what nobody wrote must not matter
        most = 0 if drafts is None else MOST_DRAFTS
        table = RowTable(6, 128, BLOCK_SIZE, device, most)
        on_device = True if capture is not None else None
        sampler = Sampler(6, VOCABULARY, device, on_device=on_device, most_lines=6 * (1 + most))
        graphs = None
        if capture is not None:
            assert sampler.device_sampling is not None
            rows = SampledRows(table, sampler.device_sampling)
            plan = GraphPlan(capture, [1, 2, 5])
            graphs = DecodeGraphs(model, model.attention, cache, plan, 128, rows)
            assert graphs.capture() == []
        speculation = None if drafts is None else Speculation(drafts, FREE)
        self.runner = Runner(model, table, cache, sampler, graphs=graphs, speculation=speculation)
        self._free = [int(block) for block in torch.randperm(N_BLOCKS)]
        self._n_steps = 0

    def admit(self, row: int, tokens: list[int], **options: Any) -> Admit:
        blocks = [self._free.pop() for _ in range(-(-(len(tokens) + 20) // BLOCK_SIZE))]
        options = {"n_cached": 0, "sampling": Sampling(), "n_prompt": len(tokens), **options}
        return Admit(row=row, tokens=tokens, blocks=blocks, **options)

    def step(
        self, run: dict[int, int], *admit: Admit, release: tuple[int, ...] = (), grow: Any = ()
    ) -> StepDone:
        done = self.runner.collect(self.launch(run, *admit, release=release, grow=grow))
        assert done.step == self._n_steps
        return done

    def launch(
        self, run: dict[int, int], *admit: Admit, release: tuple[int, ...] = (), grow: Any = ()
    ) -> LaunchedStep:
        self._n_steps += 1
        runs = [Run(row, n) for row, n in run.items()]
        step = Step(self._n_steps, list(release), list(admit), list(grow), runs)
        return self.runner.launch(step)


def tokens_of(done: StepDone) -> dict[int, int]:
    return {one.row: one.tokens[0] for one in done.sampled}


@torch.inference_mode()
def greedy(reference: PreTrainedModel, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(reference(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@torch.inference_mode()
def logprobs(reference: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """float32 [len(ids) - 1]: of each token after the first, given those before it."""
    scores: torch.Tensor = reference(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    return scores[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_mixed_batches_say_what_each_sequence_says_alone(
    model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(model)
    found: dict[int, list[int]] = {0: [], 1: [], 2: []}

    def step(run: dict[int, int], *admit: Admit) -> None:
        for row, token in tokens_of(batch.step(run, *admit)).items():
            found[row].append(token)

    step({0: 3}, batch.admit(0, SHORT))
    step({0: 1, 1: 7}, batch.admit(1, LONG))  # a decode beside a chunk that does not sample
    step({0: 1, 1: 22, 2: 1}, batch.admit(2, LONG[::-1]))
    step({0: 1, 1: 1, 2: 29})  # its chunk ends just there: this row samples, the others decode
    for _ in range(6):
        step({2: 1, 0: 1, 1: 1})
    assert found == {
        0: greedy(reference, SHORT, 10),
        1: greedy(reference, LONG, 7),
        2: greedy(reference, LONG[::-1], 7),
    }


def test_logits_equal_those_of_transformers(model: Loaded, reference: PreTrainedModel) -> None:
    batch = Batch(model)
    sampling = Sampling(logprobs=True, top_n_tokens=5)
    first = batch.step(
        {0: 30, 1: 3}, batch.admit(0, LONG, sampling=sampling), batch.admit(1, SHORT)
    )
    second = batch.step({1: 1, 0: 1})
    ids = LONG
    for done in (first, second):
        one = next(one for one in done.sampled if one.row == 0)
        with torch.inference_mode():
            scores = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        assert one.logprobs == pytest.approx([float(scores.max())], abs=1e-4)
        assert [top.id for top in one.top[0]] == scores.topk(5).indices.tolist()
        ids = [*ids, *one.tokens]
        assert next(one for one in done.sampled if one.row == 1).logprobs == []


def test_a_replay_of_prompt_and_emitted_tokens_goes_on_the_same(
    model: Loaded, reference: PreTrainedModel
) -> None:
    expected = greedy(reference, SHORT, 8)
    batch = Batch(model)
    replay = batch.admit(4, SHORT + expected[:5], n_prompt=3)
    found = [tokens_of(batch.step({4: 8}, replay))[4]]
    found += [tokens_of(batch.step({4: 1}))[4] for _ in range(2)]
    assert found == expected[5:]


def test_a_prefix_hit_reads_what_another_row_wrote(
    model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(model)
    writer = batch.admit(0, LONG)
    batch.step({0: 30}, writer)
    reader = batch.admit(1, LONG[:20] + SHORT, n_cached=20)
    reader.blocks[:5] = writer.blocks[:5]
    done = batch.step({0: 1, 1: 3}, reader)
    assert tokens_of(done)[1] == greedy(reference, LONG[:20] + SHORT, 1)[0]


def test_a_released_row_can_be_another_request_in_the_same_step(
    model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(model)
    batch.step({0: 30}, batch.admit(0, LONG))
    done = batch.step({0: 3}, batch.admit(0, SHORT), release=(0,))
    assert tokens_of(done) == {0: greedy(reference, SHORT, 1)[0]}


def test_a_row_grows_into_new_blocks(model: Loaded, reference: PreTrainedModel) -> None:
    batch = Batch(model)
    admit = batch.admit(0, SHORT)
    short = Admit(0, SHORT, 3, 0, admit.blocks[:1], Sampling())
    found = [tokens_of(batch.step({0: 3}, short))[0], tokens_of(batch.step({0: 1}))[0]]
    for block in admit.blocks[1:3]:
        found.append(tokens_of(batch.step({0: 1}, grow=[Grow(0, [block])]))[0])
        found += [tokens_of(batch.step({0: 1}))[0] for _ in range(3)]
    assert found == greedy(reference, SHORT, 10)


@pytest.mark.parametrize("chunks", [[30], [1, 29], [29, 1], [7, 9, 14]])
def test_prompt_logprobs_are_those_of_the_whole_forward(
    model: Loaded, reference: PreTrainedModel, chunks: list[int]
) -> None:
    batch = Batch(model)
    batch.step({1: 3}, batch.admit(1, SHORT))
    found: list[float] = []
    admit = [batch.admit(0, LONG, prompt_logprobs=True)]
    for n in chunks:
        done = batch.step({1: 1, 0: n}, *admit)
        for part in done.prompt_logprobs:
            assert (part.row, part.start) == (0, 1 + len(found))
            found += part.logprobs
        admit = []
    assert tokens_of(done)[0] == greedy(reference, LONG, 1)[0]
    torch.testing.assert_close(torch.tensor(found), logprobs(reference, LONG), atol=1e-4, rtol=1e-4)
    assert batch.step({0: 1}).prompt_logprobs == []


@pytest.mark.parametrize("n", [1, 3, VOCABULARY + 9])
def test_the_likeliest_tokens_of_a_prompt_are_those_of_the_whole_forward(
    model: Loaded, reference: PreTrainedModel, n: int
) -> None:
    batch = Batch(model)
    wanted = batch.admit(0, LONG, prompt_logprobs=True, prompt_top_n_tokens=n)
    unwanted = batch.admit(1, LONG, prompt_logprobs=True)
    found: list[list[TopToken]] = []
    ranks: list[int] = []
    for runs, admit in (({0: 11, 1: 30}, (wanted, unwanted)), ({0: 19}, ())):
        for part in batch.step(runs, *admit).prompt_logprobs:
            assert len(part.top) == (0 if part.row else len(part.logprobs))
            found += part.top
            ranks += [] if part.row else part.ranks
    ids = torch.tensor([[one.id for one in ones] for ones in found])
    scores = torch.tensor([[one.logprob for one in ones] for ones in found])
    with torch.inference_mode():
        everything = reference(torch.tensor([LONG])).logits[0, :-1].log_softmax(-1)
    chosen = everything.gather(1, torch.tensor(LONG)[1:, None])
    assert ranks == (everything >= chosen).sum(1).tolist()
    best = everything.topk(min(n, VOCABULARY))
    assert ids.tolist() == best.indices.tolist()
    torch.testing.assert_close(scores, best.values, atol=1e-4, rtol=1e-4)


def test_many_prompt_positions_are_scored_in_parts(
    model: Loaded, reference: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.runner.PROMPT_LOGPROBS_AT_ONCE", 8)
    batch = Batch(model)
    both = [
        batch.admit(row, LONG[row:], prompt_logprobs=True, prompt_top_n_tokens=1) for row in (0, 1)
    ]
    done = batch.step({0: 30, 1: 29}, *both)
    for part in done.prompt_logprobs:
        likeliest = [ones[0].logprob for ones in part.top]
        assert all(map(float.__ge__, likeliest, part.logprobs))
        expected = logprobs(reference, LONG[part.row :])
        torch.testing.assert_close(torch.tensor(part.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_a_prompt_of_one_token_has_nothing_to_score(model: Loaded) -> None:
    batch = Batch(model)
    done = batch.step({0: 1}, batch.admit(0, [3], prompt_logprobs=True))
    assert done.prompt_logprobs == []
    assert len(done.sampled) == 1


def test_a_row_that_makes_the_model_fail_fails_alone(
    model: Loaded, reference: PreTrainedModel
) -> None:
    raising = Raising(model)
    batch = Batch(raising)
    batch.step({0: 3}, batch.admit(0, SHORT))
    rows = [batch.admit(1, LONG), batch.admit(2, [96, 1])]
    done = batch.step({0: 1, 1: 30, 2: 2}, *rows)
    assert [(error.row, error.message) for error in done.errors] == [(2, "out of registers")]
    assert tokens_of(done) == {
        0: greedy(reference, SHORT, 2)[1],
        1: greedy(reference, LONG, 1)[0],
    }
    # The router did not know yet when it sent the next step.
    n_forwards = raising.n_forwards
    done = batch.step({0: 1, 1: 1, 2: 1})
    assert [error.row for error in done.errors] == [2]
    assert tokens_of(done) == {0: greedy(reference, SHORT, 3)[2], 1: greedy(reference, LONG, 2)[1]}
    assert raising.n_forwards == n_forwards + 1
    done = batch.step({0: 1, 2: 3}, batch.admit(2, SHORT), release=(2,))
    assert done.errors == []
    assert tokens_of(done)[2] == greedy(reference, SHORT, 1)[0]


def test_a_step_of_failed_rows_alone_has_only_their_errors(model: Loaded) -> None:
    batch = Batch(Raising(model))
    assert len(batch.step({0: 2}, batch.admit(0, [96, 1])).errors) == 1
    done = batch.step({0: 1})
    assert (len(done.errors), done.sampled) == (1, [])


def test_logits_that_are_no_numbers_fail_their_row_alone(
    model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(Spoiling(model))
    done = batch.step({0: 3, 1: 2}, batch.admit(0, SHORT), batch.admit(1, [1, 96]))
    assert [error.row for error in done.errors] == [1]
    assert "not usable" in done.errors[0].message
    assert tokens_of(done) == {0: greedy(reference, SHORT, 1)[0]}
    done = batch.step({0: 1, 1: 1})
    assert [error.row for error in done.errors] == [1]
    assert tokens_of(done) == {0: greedy(reference, SHORT, 2)[1]}


def test_an_error_found_late_is_not_that_of_the_next_request_in_the_row(
    model: Loaded, reference: PreTrainedModel
) -> None:
    batch = Batch(Spoiling(model))
    runner = batch.runner
    first = runner.launch(Step(1, [], [batch.admit(0, [1, 96])], [], [Run(0, 2)]))
    second = runner.launch(Step(2, [0], [batch.admit(0, SHORT)], [], [Run(0, 3)]))
    assert [error.row for error in runner.collect(first).errors] == [0]
    assert tokens_of(runner.collect(second)) == {0: greedy(reference, SHORT, 1)[0]}
    third = runner.collect(runner.launch(Step(3, [], [], [], [Run(0, 1)])))
    assert third.errors == []
    assert tokens_of(third) == {0: greedy(reference, SHORT, 2)[1]}


def test_a_lost_device_is_not_one_rows_fault(model: Loaded) -> None:
    class Lost:
        def forward(self, batch: ForwardBatch) -> ForwardOutput:
            raise torch.AcceleratorError("the device is gone")

    batch = Batch(Lost())
    with pytest.raises(torch.AcceleratorError):
        batch.step({0: 3}, batch.admit(0, SHORT))


@pytest.mark.parametrize("step", [{"run": {3: 1}}, {"run": {}, "grow": [Grow(3, [1])]}])
def test_a_step_about_a_row_that_is_not_there_is_an_error(
    model: Loaded, step: dict[str, Any]
) -> None:
    with pytest.raises(KeyError, match="row 3 is not in the batch"):
        Batch(model).step(**step)


def test_times_are_reported(model: Loaded) -> None:
    batch = Batch(model)
    done = batch.step({0: 30}, batch.admit(0, LONG))
    assert done.forward_seconds > 0
    assert done.sample_seconds > 0
