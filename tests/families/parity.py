"""A small model served in mixed batches, held to transformers' own code for each text alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from tests.families.cases import VOCABULARY
from tgi_async.wire.messages import Admit, Run, Sampling, Step
from workers.forward import ForwardBatch, ForwardOutput, Model
from workers.models.loading import Loaded
from workers.runner import Runner
from workers.sampling import Sampler
from workers.table import RowTable

CPU = torch.device("cpu")
LENGTHS = (37, 61, 5, 22)
"""Of the prompts."""
NEW_TOKENS = 32
MOST_DIFFERENCE = 5e-4
"""Between logits, float32; also how near two of the reference are for either token to be right."""
BLOCK_SIZE = 4
BLOCKS_PER_ROW = -(-(max(LENGTHS) + NEW_TOKENS) // BLOCK_SIZE)


class Text(NamedTuple):
    """What was computed of one row."""

    tokens: list[int]
    """The prompt and what was generated."""
    logits: torch.Tensor
    """[len(tokens) - 1, vocabulary], at every position that was computed."""


class Outcome(NamedTuple):
    """How a path compares with transformers."""

    difference: float
    """The largest between logits, at every position of every text."""
    equal: bool
    """Whether all tokens are those of transformers' `generate`, near ties aside."""
    near_ties: int
    positions: int
    spread: float
    """Standard deviation of the reference's logits, which says what a difference means."""


class Recorder:
    """Passes a model's logits on, and keeps those of the last call."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.logits = torch.empty(0)

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        self.logits = self._model.forward(batch).logits.clone()
        return ForwardOutput(self.logits)


def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(3, VOCABULARY, (n,), generator=generator).tolist() for n in LENGTHS]


def forced(model: Loaded, texts: list[list[int]]) -> list[Text]:
    """The same of texts that are known, as ranks compute them that do not sample."""
    return generate(model, len(texts[0]) - LENGTHS[0], texts)


def generate(
    model: Loaded,
    new_tokens: int = NEW_TOKENS,
    known: list[list[int]] | None = None,
    dtype: torch.dtype = torch.float32,
) -> list[Text]:
    """Greedy texts of all prompts, or the `known` ones. Row r joins in step r + 1, computes at most
    9 + r tokens of its prompt a step, and its blocks lie scattered through the pool."""
    recorder = Recorder(model)
    given = prompts()
    n_rows = len(given)
    n_blocks = n_rows * BLOCKS_PER_ROW
    cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
    for pool in cache.keys + cache.values:
        pool.fill_(float("nan"))
    table = RowTable(n_rows, BLOCKS_PER_ROW * BLOCK_SIZE, BLOCK_SIZE, CPU)
    runner = Runner(recorder, table, cache, Sampler(n_rows, model.spec.vocab_size, CPU))
    tokens = [list(prompt) for prompt in given]
    found: list[list[torch.Tensor]] = [[] for _ in given]
    computed = [0] * n_rows
    ends = [len(prompt) + new_tokens - 1 for prompt in given]
    step = 0
    while any(computed[r] < ends[r] for r in range(n_rows)):
        step += 1
        admit = []
        if step <= n_rows:
            row = step - 1
            blocks = list(range(row, n_blocks, n_rows))
            n = len(given[row])
            admit = [Admit(row, given[row], n, 0, blocks, Sampling(), prompt_logprobs=True)]
        runs = [
            Run(r, max(1, min(9 + r, len(given[r]) - computed[r])))
            for r in range(min(step, n_rows))
            if computed[r] < ends[r]
        ]
        done = runner.collect(runner.launch(Step(step, [], admit, [], runs)))
        if done.errors:
            raise RuntimeError(done.errors[0].message)
        # First the rows that sample, decodes before chunks; then the prompt log-probabilities of
        # each chunk.
        order = [one.row for one in done.sampled]
        offset = len(order)
        for run in runs:
            start, end = computed[run.row], computed[run.row] + run.n
            if start < len(given[run.row]) - 1:
                found[run.row] += recorder.logits[offset : offset + run.n]
                offset += run.n
            else:
                found[run.row].append(recorder.logits[order.index(run.row)])
            computed[run.row] = end
        for one in done.sampled:
            token = known[one.row][len(tokens[one.row])] if known else one.tokens[0]
            table.last_tokens[one.row] = token
            tokens[one.row].append(token)
    return [Text(t, torch.stack(rows)) for t, rows in zip(tokens, found, strict=True)]


class Reference:
    """transformers' own code for one text at a time."""

    def __init__(
        self, folder: Path, attention: str = "eager", dtype: torch.dtype = torch.float32
    ) -> None:
        self._model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, attn_implementation=attention
        )
        self._model.generation_config = GenerationConfig(
            max_new_tokens=NEW_TOKENS, do_sample=False, pad_token_id=0, eos_token_id=None
        )

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """[len(tokens), vocabulary]"""
        logits: torch.Tensor = self._model(torch.tensor([tokens]), use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def generate(self, prompt: Sequence[int]) -> list[int]:
        ids = torch.tensor([prompt])
        text = self._model.generate(ids, attention_mask=torch.ones_like(ids))[0]
        tokens: list[int] = text.tolist()
        return tokens


def difference(texts: list[Text], reference: Reference) -> float:
    """The largest between the logits of texts and the reference's, of the same tokens."""
    return max(
        float((text.logits - reference.logits(text.tokens[:-1])).abs().max()) for text in texts
    )


def compare(texts: list[Text], reference: Reference) -> Outcome:
    largest, equal, near_ties, positions, spread = 0.0, True, 0, 0, 0.0
    for prompt, text in zip(prompts(), texts, strict=True):
        expected = reference.logits(text.tokens[:-1])
        largest = max(largest, float((text.logits - expected).abs().max()))
        spread = max(spread, float(expected.std()))
        best = expected.topk(2).values
        near = (best[:, 0] - best[:, 1] < MOST_DIFFERENCE).tolist()
        positions += len(near)
        generated = reference.generate(prompt)
        same = True
        for at in range(len(prompt), len(text.tokens)):
            token = text.tokens[at]
            behind = float(best[at - 1, 0] - expected[at - 1, token])
            if near[at - 1]:
                near_ties += 1
                equal &= behind < MOST_DIFFERENCE
            else:
                equal &= behind == 0.0
            # From a near tie on, what is generated there may be another text.
            same &= token == generated[at]
            equal &= same or any(near[len(prompt) - 1 : at])
    return Outcome(largest, equal, near_ties, positions, spread)
