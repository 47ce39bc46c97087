"""float32: texts about images are those of transformers' `generate`, whatever happens to the
batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.doubles import eager_worker
from tests.families.vision_cases import CASES, Prompt, prompts, spans
from tests.families.vision_parity import NEW_TOKENS, Reference, images
from tests.helpers.tiny_processors import save_processor
from tests.helpers.tiny_vision import save_vision
from tests.helpers.vision_tokens import token_id
from tests.integration.running_engine import finish_all, running_engine, until_idle
from tgi_async.engine import Engine
from tgi_async.generation import GenerationRequest
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import Sampling

QUICK = ("llava", "gemma3")
SURE = 1e-3
"""What two logits differ by at least where a token of the reference is certain."""


class Asked:
    """Requests for texts about images of a family, and the texts that are due."""

    def __init__(self, kind: str, folder: Path) -> None:
        save_processor(kind, folder)
        self.folder = save_vision(kind, folder)
        self._case = CASES[kind]
        self._reference = Reference(self._case, folder)
        self._prompts = prompts(self._case, self._reference.n_rows)
        self._banned = token_id(self._case.image_token)
        self._due: dict[int, tuple[list[int], int]] = {}

    def requests(self, times: int = 2) -> list[GenerationRequest]:
        return [self._request(one) for one in self._prompts * times]

    def _request(self, prompt: Prompt) -> GenerationRequest:
        found = images(self._case, prompt, self.folder)
        return GenerationRequest(
            prompt.tokens,
            Sampling(banned=[[self._banned]]),
            max_new_tokens=NEW_TOKENS,
            ignore_eos=True,
            images=tuple(found),
            salts=tuple(Salt(one.start, one.end, one.digest) for one in found),
            spans=tuple(spans(self._case, prompt)),
        )

    def check(self, texts: Sequence[list[int]]) -> None:
        n_checked = 0
        for at, tokens in enumerate(texts):
            place = at % len(self._prompts)
            if place not in self._due:
                self._due[place] = self._of(self._prompts[place])
            due, n_sure = self._due[place]
            assert tokens[:n_sure] == due[:n_sure], place
            n_checked += n_sure
        assert n_checked > 0.8 * NEW_TOKENS * len(texts)

    def _of(self, prompt: Prompt) -> tuple[list[int], int]:
        """The text, and how many of its tokens are certain."""
        tokens = self._reference.generate(prompt)
        logits = self._reference.logits(prompt, tokens[:-1]).clone()
        logits[:, self._banned] = float("-inf")
        best = logits[len(prompt.tokens) - 1 :].topk(2).values
        unsure = (best[:, 0] - best[:, 1] < SURE).nonzero()[:, 0].tolist()
        return tokens[len(prompt.tokens) :], unsure[0] if unsure else NEW_TOKENS


async def finish(
    engine: Engine, asked: Asked, times: int, harm: Callable[[], Any] | None = None
) -> None:
    n_times = 0

    def on_tokens() -> None:
        # Not seen by looking now and then: all may be over in between.
        nonlocal n_times
        n_times += 1
        if n_times == 3 and harm is not None:
            harm()

    texts = await finish_all(engine, asked.requests(times), within=0.02, on_tokens=on_tokens)
    asked.check([text.tokens for text in texts])
    await until_idle(engine)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("llava", {"max_drafts": 3, "speculation": "ngram"}),
        ("gemma3", {"model_impl": "transformers"}),
        *(
            pytest.param(kind, more, marks=pytest.mark.full)
            for kind, more in (
                ("qwen2_vl", {}),
                ("qwen2_vl", {"max_drafts": 3}),
                ("qwen2_5_vl", {"model_impl": "transformers"}),
                ("qwen3_vl", {"model_impl": "transformers", "max_drafts": 3}),
                ("idefics3", {}),
                ("idefics2", {"max_drafts": 8}),
                ("smolvlm", {"lookahead": 0}),
                ("llava_next", {"model_impl": "transformers", "max_drafts": 3}),
                ("paligemma", {"model_impl": "transformers"}),
                ("gemma3", {"model_impl": "transformers", "max_drafts": 3}),
                ("llava", {"world_size": 2}),
                ("qwen2_vl", {"world_size": 2, "model_impl": "transformers"}),
                ("gemma3", {"world_size": 2, "model_impl": "transformers"}),
            )
        ),
    ],
)
async def test_in_chunks_preempted_with_hits_and_replayed(
    kind: str, more: dict[str, Any], tmp_path: Path
) -> None:
    asked = Asked(kind, tmp_path)
    if "max_drafts" in more:
        more = {**more, "command": eager_worker.COMMAND}
    longest = max(len(one.prompt) for one in asked.requests(1)) + NEW_TOKENS
    n_blocks = -(-longest // 16) + 2
    async with running_engine(
        asked.folder, max_batch_prefill_tokens=16, n_blocks=n_blocks, crowded=True, **more
    ) as engine:
        await finish(engine, asked, 3)
        core = engine.core
        assert core.n_preemptions > 0 or kind not in QUICK
        assert core.n_hit_tokens > 0 or kind == "paligemma"
        group = engine._workers.group
        assert group is not None
        await finish(engine, asked, 2, lambda: os.kill(group.pids[0], signal.SIGKILL))
        assert engine.worker_restarts == 1
