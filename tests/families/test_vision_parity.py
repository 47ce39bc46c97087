"""Every family that takes images, loaded from its files, against transformers in float32."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families.parity import CPU
from tests.families.vision_cases import CASES, prompts
from tests.families.vision_parity import Reference, compare, serve
from tests.helpers.loading import load
from tests.helpers.tiny_vision import save_vision
from tests.helpers.vision_tokens import token_id

QUICK = ("gemma3", "llava", "qwen2_vl")
"""Images that attend in both directions, none of that, and positions of three axes."""
LONG = [pytest.param(name, marks=pytest.mark.full) for name in CASES if name not in QUICK]
MOST_DIFFERENCE = 1e-3


@pytest.mark.parametrize("kind", [*QUICK, *LONG])
def test_texts_and_logits_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    case = CASES[kind]
    model = load(save_vision(kind, tmp_path), torch.float32, CPU)
    reference = Reference(case, tmp_path)
    given = prompts(case, reference.n_rows)
    served = serve(case, model, given, tmp_path)
    outcome = compare(given, served, reference, token_id(case.image_token))
    assert outcome.spread > 0.2  # so that the difference below says something
    assert outcome.difference < MOST_DIFFERENCE
    assert outcome.wrong == 0
    assert case.bidirectional == "prompt" or any(one.n_cached for one in served)
