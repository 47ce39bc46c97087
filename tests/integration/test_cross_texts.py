"""float32: texts of families that attend to images are those of transformers, whatever happens to
the batch."""

from __future__ import annotations

import asyncio
import os
import signal
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import eager_worker
from tests.families.cross_rows import CASES_OF, TOKENS, Reference, Row, prompt_of, rows_of
from tests.families.vision_parity import images
from tests.helpers.tiny_processors import save_processor
from tests.helpers.tiny_vision_cross import save_vision
from tests.integration.running_engine import finish_all, running_engine, until_idle
from tests.integration.waiting import until
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import Sampling

NEW_TOKENS = 12
SURE = 1e-3
"""What two logits differ by at least where a token of the reference is certain."""


def request_of(row: Row, folder: Path) -> GenerationRequest:
    found = images(CASES_OF[row.kind], prompt_of(row), folder)
    salts = [Salt(one.start, one.end, one.digest) for one in found]
    if row.kind == "mllama" and found:  # what stands before an image depends on it
        together = b"".join(one.digest for one in found)
        salts = [Salt(0, 1, blake2b(together, digest_size=16).digest())]
    return GenerationRequest(
        row.prompt,
        Sampling(banned=[[TOKENS[row.kind]]]),
        max_new_tokens=NEW_TOKENS,
        ignore_eos=True,
        images=tuple(found),
        salts=tuple(salts),
    )


def due(row: Row, reference: Reference) -> list[int]:
    """The tokens that are certain."""
    tokens = list(row.prompt)
    for _ in range(NEW_TOKENS):
        logits = reference.logits(row, tokens)[-1].clone()
        logits[TOKENS[row.kind]] = float("-inf")
        best = logits.topk(2)
        if float(best.values[0] - best.values[1]) < SURE:
            break
        tokens.append(int(best.indices[0]))
    return tokens[len(row.prompt) :]


@pytest.mark.full
@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("mllama", {"max_drafts": 3, "speculation": "ngram", "command": eager_worker.COMMAND}),
        ("mllama", {"lookahead": 0}),
        ("idefics", {}),
        ("idefics", {"max_drafts": 3, "command": eager_worker.COMMAND}),
    ],
)
async def test_in_chunks_preempted_with_hits_and_replayed(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    save_processor(kind, tmp_path)
    folder = save_vision(kind, tmp_path)
    rows, reference = rows_of(kind), Reference(folder, NEW_TOKENS)
    texts = [due(row, reference) for row in rows]
    assert sum(map(len, texts)) > 0.8 * NEW_TOKENS * len(texts)
    async with running_engine(
        folder,
        max_batch_prefill_tokens=16,
        n_blocks=9,
        model_impl="transformers",
        crowded=True,
        **more,
    ) as engine:
        for kill in (False, True):
            asked = [request_of(row, tmp_path) for row in rows * 2]
            running = asyncio.create_task(finish_all(engine, asked, within=0.02))
            if kill:
                await until(lambda: some_were_emitted(engine))
                group = engine._workers.group
                assert group is not None
                os.kill(group.pids[0], signal.SIGKILL)
            for at, text in enumerate(await running):
                expected = texts[at % len(texts)]
                assert text.tokens[: len(expected)] == expected
            await until_idle(engine)
        assert engine.worker_restarts == 1
        assert engine.core.n_preemptions > 0
        assert engine.core.n_hit_tokens > 0


async def some_were_emitted(engine: Engine) -> bool:
    return sum(request.n_emitted for request in engine.core.running) > 2
