"""A small model of images served in mixed batches, held to transformers' own code for each prompt
alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForImageTextToText, GenerationConfig

from tests.families.parity import CPU, MOST_DIFFERENCE, Recorder, Text
from tests.families.vision_cases import Arrays, Prompt, VisionCase, spans, together
from tests.helpers.vision_tokens import token_id
from tgi_async.wire.messages import Admit, Image, PixelArray, Run, Sampling, Span, Step
from workers.attention.cache import PagedCache
from workers.models.loading import Loaded
from workers.ranks import Ranks
from workers.runner import Runner
from workers.sampling import Sampler
from workers.table import RowTable
from workers.tensor_parallel import DriverRank
from workers.vision.rows import RowImages

NEW_TOKENS = 12
BLOCK_SIZE = 4
MOST_AT_ONCE = 13
"""Tokens of a prompt in a step, unless more belong together."""


class Served(NamedTuple):
    """What was computed of a prompt."""

    text: Text
    """With the logits from position `n_cached` on."""
    n_cached: int


class Outcome(NamedTuple):
    """How it compares with transformers."""

    difference: float
    """The largest between logits, at every position of every text."""
    wrong: int
    """Tokens that are not those of `generate`, where that was sure of them."""
    spread: float
    """Standard deviation of the reference's logits."""


class Reference:
    """transformers' own code for one prompt at a time."""

    def __init__(self, case: VisionCase, folder: Path, dtype: torch.dtype = torch.float32) -> None:
        self._case = case
        self._image = token_id(case.image_token)
        self._model: Any = AutoModelForImageTextToText.from_pretrained(
            folder, dtype=dtype, attn_implementation="eager"
        )
        self._model.generation_config = GenerationConfig(
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            suppress_tokens=[self._image],
        )

    @torch.inference_mode()
    def n_rows(self, arrays: Arrays) -> int:
        """How many tokens an image takes."""
        found = self._model.model.get_image_features(**_torch(arrays), return_dict=True)
        parts = found.pooler_output
        return sum(one.shape[:-1].numel() for one in ([parts] if torch.is_tensor(parts) else parts))

    @torch.inference_mode()
    def logits(self, prompt: Prompt, tokens: list[int]) -> torch.Tensor:
        """[len(tokens), vocabulary] of a text that begins with the prompt."""
        ids = torch.tensor([tokens])
        given = self._given(prompt, ids)
        logits: torch.Tensor = self._model(ids, **given, use_cache=False).logits[0]
        return logits

    @torch.inference_mode()
    def generate(self, prompt: Prompt) -> list[int]:
        ids = torch.tensor([prompt.tokens])
        given = self._given(prompt, ids)
        text = self._model.generate(ids, attention_mask=torch.ones_like(ids), **given)[0]
        tokens: list[int] = text.tolist()
        return tokens

    def _given(self, prompt: Prompt, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        given = {
            name: one.to(self._model.dtype) if one.is_floating_point() else one
            for name, one in _torch(together(self._case, prompt)).items()
        }
        if self._case.bidirectional == "prompt":
            if prompt.pictures:
                given[self._case.types] = (torch.arange(ids.shape[1]) >= len(prompt.tokens))[
                    None
                ].long()
        elif self._case.types:
            given[self._case.types] = (ids == self._image).long()
        return given


def _torch(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(one) for name, one in arrays.items()}


def images(case: VisionCase, prompt: Prompt, folder: Path) -> list[Image]:
    """Write the arrays of a prompt's images into files, as the router has them."""
    found = []
    for start, one in prompt.pictures:
        arrays, content = [], b""
        for name, array in one.arrays.items():
            arrays.append(PixelArray(name, str(array.dtype), list(array.shape), len(content)))
            content += array.tobytes()
            content += bytes(-len(content) % 64)
        digest = hashlib.blake2b(content, digest_size=16).digest()
        path = folder / f"{digest.hex()}.image"
        path.write_bytes(content)
        at = [i for i, token in enumerate(one.tokens) if token == token_id(case.image_token)]
        found.append(Image(digest, start + at[0], start + at[-1] + 1, str(path), arrays))
    return found


def serve(
    case: VisionCase,
    model: Loaded,
    given: list[Prompt],
    folder: Path,
    ranks: Ranks | None = None,
    device: torch.device = CPU,
) -> list[Served]:
    """Greedy texts of the prompts in one batch; of several ranks, the first one computes them.

    Prompt r joins in step r + 1, and its blocks lie scattered through the pool; one that is an
    earlier prompt again joins once that is computed, and shares what blocks it can.
    """
    driver = None if ranks is None else DriverRank(model, ranks)
    recorder = Recorder(driver or model)
    n_rows = len(given)
    cache = pool_of(model, given, device)
    per_row = cache.n_blocks // n_rows
    table = RowTable(n_rows, per_row * BLOCK_SIZE, BLOCK_SIZE, device)
    assert model.vision is not None
    sampler = Sampler(n_rows, model.spec.vocab_size, device)
    row_images = RowImages(model.vision, n_rows, device)
    runner = Runner(recorder, table, cache, sampler, images=row_images)
    banned = Sampling(banned=[[token_id(case.image_token)]])
    bound = [spans(case, one) for one in given]
    blocks = [list(range(row, n_rows * per_row, n_rows)) for row in range(n_rows)]
    tokens = [list(one.tokens) for one in given]
    found: list[list[torch.Tensor]] = [[] for _ in given]
    computed: dict[int, int] = {}
    cached = [0] * n_rows
    ends = [len(one.tokens) + NEW_TOKENS - 1 for one in given]
    step = 0
    while any(computed.get(row, 0) < ends[row] for row in range(n_rows)):
        step += 1
        admit = []
        for row in range(min(step, n_rows)):
            same = next(at for at, one in enumerate(given) if one is given[row])
            n_prompt = len(given[row].tokens)
            if row in computed or (same < row and computed[same] < n_prompt):
                continue
            if same < row:
                cached[row] = _hit(n_prompt, bound[row])
                n_shared = cached[row] // BLOCK_SIZE
                blocks[row][:n_shared] = blocks[same][:n_shared]
            computed[row] = cached[row]
            admit.append(
                Admit(
                    row,
                    given[row].tokens,
                    n_prompt,
                    cached[row],
                    blocks[row],
                    banned,
                    prompt_logprobs=True,
                    images=images(case, given[row], folder),
                    spans=bound[row],
                )
            )
        runs = [
            Run(row, _chunk(at, len(given[row].tokens), bound[row]))
            for row, at in computed.items()
            if at < ends[row]
        ]
        done = runner.collect(runner.launch(Step(step, [], admit, [], runs)))
        if done.errors:
            raise RuntimeError(done.errors[0].message)
        # First the rows that sample, decodes before chunks; then the prompt log-probabilities of
        # each chunk.
        order = [one.row for one in done.sampled]
        offset = len(order)
        for run in runs:
            start = computed[run.row]
            if start < len(given[run.row].tokens) - 1:
                found[run.row] += recorder.logits[offset : offset + run.n]
                offset += run.n
            else:
                found[run.row].append(recorder.logits[order.index(run.row)])
            computed[run.row] = start + run.n
        for one in done.sampled:
            tokens[one.row] += one.tokens
    if driver is not None:
        driver.end()
    return [
        Served(Text(text, torch.stack(rows).cpu()), n)
        for text, rows, n in zip(tokens, found, cached, strict=True)
    ]


def pool_of(model: Loaded, given: list[Prompt], device: torch.device = CPU) -> PagedCache:
    """A cache for all prompts and their texts, of numbers that would be seen."""
    longest = max(len(one.tokens) for one in given) + NEW_TOKENS
    cache = model.spec.cache_group.pool(len(given) * -(-longest // BLOCK_SIZE), BLOCK_SIZE, device)
    for pool in cache.keys + cache.values:
        pool.fill_(float("nan"))
    return cache


def _chunk(at: int, n_prompt: int, bound: list[Span]) -> int:
    """How many tokens a row computes next."""
    if at >= n_prompt:
        return 1
    end = min(at + MOST_AT_ONCE, n_prompt)
    for span in bound:
        if span.start < end < span.end:
            end = span.end if span.start == at else span.start
    return end - at


def _hit(n_prompt: int, bound: list[Span]) -> int:
    """How many tokens of a prompt that was computed another one shares."""
    n = (n_prompt - 1) // BLOCK_SIZE * BLOCK_SIZE
    for span in reversed(bound):
        if span.start < n < span.end:
            n = span.start // BLOCK_SIZE * BLOCK_SIZE
    return n


def compare(
    given: list[Prompt], served: list[Served], reference: Reference, banned: int
) -> Outcome:
    difference, wrong, spread = 0.0, 0, 0.0
    for prompt, (text, n_cached) in zip(given, served, strict=True):
        expected = reference.logits(prompt, text.tokens[:-1]).clone()
        spread = max(spread, float(expected.std()))
        difference = max(difference, float((text.logits - expected[n_cached:]).abs().max()))
        expected[:, banned] = float("-inf")
        best = expected.topk(2).values
        sure = (best[:, 0] - best[:, 1] >= MOST_DIFFERENCE).tolist()
        generated = reference.generate(prompt)
        for at in range(len(prompt.tokens), len(text.tokens)):
            if not sure[at - 1]:
                break  # from here on, what is generated there may be another text
            wrong += text.tokens[at] != generated[at]
    return Outcome(difference, wrong, spread)
