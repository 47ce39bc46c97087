"""What rank 0 has of a model on several ranks, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch

from tests.helpers.loading import load
from tests.helpers.paged_sequences import PagedSequences
from tests.helpers.tiny_families import tiny

MODELS = [("fused", "gemma2"), ("fused", "llama"), ("transformers", "gemma2")]


def test_rank_0_has_the_hidden_states_of_transformers_and_the_whole_head(tmp_path: Path) -> None:
    for variant in {variant for _, variant in MODELS}:
        tiny(variant).save_pretrained(tmp_path / variant)
    named = [f"{implementation}:{tmp_path / variant}" for implementation, variant in MODELS]
    command = [sys.executable, "-m", "tests.helpers.rank_hidden"]
    processes = [
        subprocess.Popen([*command, str(rank), "2", str(tmp_path), *named]) for rank in range(2)
    ]
    try:
        assert [process.wait(280) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    for at, (implementation, variant) in enumerate(MODELS):
        hidden, scores = torch.load(tmp_path / f"{at}.pt")
        theirs = tiny(variant)
        alone = load(tmp_path / variant, torch.float32, torch.device("cpu"), implementation)
        for tokens, states, found in zip(PagedSequences(alone).tokens, hidden, scores, strict=True):
            output = theirs(tokens[None], output_hidden_states=True)
            assert (states - output.hidden_states[-1][0]).abs().max() < 1e-4
            assert (found - alone.head(states)).abs().max() < 1e-4
