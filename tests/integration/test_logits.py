"""float32: logits, since equal tokens can hide an error."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.helpers.loading import load
from tests.integration.prompts import mixed
from tests.integration.reference import Reference
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import Admit, Run, Sampling, Step
from workers.forward import ForwardBatch, ForwardOutput
from workers.models.loading import Loaded
from workers.runner import Runner
from workers.sampling import Sampler
from workers.table import RowTable

pytestmark = pytest.mark.model

MOST_DIFFERENCE = 1e-3
BLOCK_SIZE = 4
BLOCKS_PER_ROW = 40
CPU = torch.device("cpu")


class Recorder:
    """Passes a model's logits on, and keeps those of the last call."""

    def __init__(self, model: Loaded) -> None:
        self._model = model
        self.logits = torch.empty(0)

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        self.logits = self._model.forward(batch).logits.clone()
        return ForwardOutput(self.logits)


@pytest.mark.parametrize(
    "implementation", ["fused", pytest.param("transformers", marks=pytest.mark.full)]
)
def test_logits_of_chunks_and_decodes_are_those_of_one_pass(
    model_folder: Path,
    reference: Reference,
    tokenizer: Tokenizer,
    report: list[str],
    implementation: str,
) -> None:
    model = load(model_folder, torch.float32, CPU, implementation=implementation)
    recorder = Recorder(model)
    prompts = [case.prompt for case in mixed(tokenizer, 6, longest=120, new_tokens=(1, 1))]
    n_rows = len(prompts)
    cache = model.spec.cache_group.pool(n_rows * BLOCKS_PER_ROW, BLOCK_SIZE)
    table = RowTable(n_rows, BLOCKS_PER_ROW * BLOCK_SIZE, BLOCK_SIZE, CPU)
    runner = Runner(recorder, table, cache, Sampler(n_rows, model.spec.vocab_size, CPU))
    # Each row's blocks lie scattered through the pool. Prompt log-probabilities are asked for, so
    # that every position goes through the head.
    admits = [
        Admit(
            row,
            prompt,
            len(prompt),
            0,
            list(range(row, n_rows * BLOCKS_PER_ROW, n_rows)),
            Sampling(),
            prompt_logprobs=True,
        )
        for row, prompt in enumerate(prompts)
    ]
    tokens = [list(prompt) for prompt in prompts]
    found: list[list[torch.Tensor]] = [[] for _ in prompts]

    computed = [0] * n_rows
    for step in range(1, 31):
        # Row r joins in step r + 1, and computes at most 16 + r tokens of its prompt a step.
        rows = range(min(step, n_rows))
        runs = [Run(r, max(1, min(16 + r, len(prompts[r]) - computed[r]))) for r in rows]
        admit = admits[step - 1 : step]
        done = runner.collect(runner.launch(Step(step, [], admit, [], runs)))
        assert not done.errors
        sampled = {one.row: one.tokens[0] for one in done.sampled}
        # First the rows that sample, decodes before chunks; then the prompt log-probabilities of
        # each chunk.
        order = [one.row for one in done.sampled]
        offset = len(order)
        for run in runs:
            start, end = computed[run.row], computed[run.row] + run.n
            if start < len(prompts[run.row]) - 1:
                found[run.row] += recorder.logits[offset : offset + run.n]
                offset += run.n
            else:
                found[run.row].append(recorder.logits[order.index(run.row)])
            computed[run.row] = end
        for row, token in sampled.items():
            tokens[row].append(token)

    largest = 0.0
    for row in range(n_rows):
        computed_logits = torch.stack(found[row])
        expected = reference.logits(tokens[row][: len(computed_logits)], len(computed_logits))
        largest = max(largest, float((computed_logits - expected).abs().max()))
    n_positions = sum(map(len, found))
    report.append(
        f"logits, {implementation}: largest difference {largest:.1e} in {n_positions} positions"
    )
    assert largest < MOST_DIFFERENCE
    assert all(len(found[row]) > len(prompts[row]) for row in range(n_rows))
