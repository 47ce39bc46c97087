"""What transformers itself says, in float32, about each prompt alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LogitsProcessorList

NEAR_TIE = 5e-4
"""Where the two best logits lie within this, either token is right."""


class Reference:
    """The model of a folder, unchanged, as transformers runs it."""

    def __init__(self, folder: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._compared: dict[tuple[int, ...], int] = {}

    @torch.inference_mode()
    def logits(self, tokens: Sequence[int], n_last: int) -> torch.Tensor:
        """float32 [n_last, vocabulary]: the logits at the last `n_last` of `tokens`."""
        output = self._model(
            torch.tensor([tokens]), use_cache=False, logits_to_keep=n_last, return_dict=True
        )
        logits: torch.Tensor = output.logits[0]
        return logits

    def compare(
        self,
        prompt: Sequence[int],
        emitted: Sequence[int],
        processors: LogitsProcessorList | None = None,
    ) -> int:
        """Hold a greedy generation against the reference; the number of near-ties on its way.

        `processors` are transformers' own, applied at every position.

        One pass over prompt and emitted tokens gives the reference's choice at every position,
        given what was emitted before it: after a near-tie that went the other way, the comparison
        goes on from there. Raises AssertionError for a token that the reference would not choose.
        """
        tokens = (*prompt, *emitted)
        if processors or tokens not in self._compared:
            logits = self.logits(tokens[:-1], len(emitted))
            if processors:
                ids = torch.tensor([tokens])
                # transformers wants a LongTensor and a FloatTensor, which no operation returns
                process: Callable[..., torch.Tensor] = processors
                rows = [
                    process(ids[:, : len(prompt) + place], logits[place : place + 1].clone())
                    for place in range(len(emitted))
                ]
                logits = torch.cat(rows)
            best = logits.topk(2).values
            chosen = logits.gather(1, torch.tensor(emitted)[:, None])[:, 0]
            behind = best[:, 0] - chosen
            wrong = (behind > NEAR_TIE).nonzero()[:, 0].tolist()
            assert not wrong, (
                f"token {wrong[0]} of {len(emitted)} behind a prompt of {len(prompt)} is "
                f"{emitted[wrong[0]]}; the reference says {int(logits[wrong[0]].argmax())}, by "
                f"{float(behind[wrong[0]]):.5f}"
            )
            self._compared[tokens] = int((best[:, 0] - best[:, 1] <= NEAR_TIE).sum())
        return self._compared[tokens]

    @torch.inference_mode()
    def generate(
        self,
        prompt: Sequence[int],
        max_new_tokens: int,
        ends: Sequence[int] | None = None,
        **settings: Any,
    ) -> list[int]:
        """What transformers' own `generate` emits, greedily; up to one of `ends`, or to the end
        that the folder names. `settings` are further ones of it."""
        own = {} if ends is None else {"eos_token_id": list(ends)}
        ids = torch.tensor([prompt])
        output = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            **own,
            **settings,
        )
        emitted: list[int] = output[0, len(prompt) :].tolist()
        return emitted
