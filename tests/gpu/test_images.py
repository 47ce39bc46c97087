"""Images on a GPU: the encoder there, its rows in both decoders, and attention in both
directions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.families.vision_cases import CASES, prompts
from tests.families.vision_parity import Reference, compare, serve
from tests.helpers.tiny_vision import save_vision
from tests.helpers.vision_tokens import token_id

pytest.importorskip("triton", reason="the package triton is not installed")

from tests.helpers.loading import load
from workers.attention.triton_paged import TritonAttention


@pytest.mark.parametrize(
    ("kind", "implementation"),
    [
        ("gemma3", "transformers"),
        ("llava", "fused"),
        *(
            pytest.param(kind, implementation, marks=pytest.mark.full)
            for kind, implementation in (
                ("llava", "transformers"),
                ("qwen2_vl", "fused"),
                ("qwen2_vl", "transformers"),
                ("idefics3", "fused"),
                ("paligemma", "transformers"),
            )
        ),
    ],
)
def test_texts_about_images_are_those_of_transformers(
    kind: str, implementation: str, tmp_path: Path, device: str
) -> None:
    where = torch.device(device)
    case = CASES[kind]
    reference = Reference(case, save_vision(kind, tmp_path))
    model = load(tmp_path, torch.float32, where, implementation, attention=TritonAttention)
    given = prompts(case, reference.n_rows)
    served = serve(case, model, given, tmp_path, device=where)
    outcome = compare(given, served, reference, token_id(case.image_token))
    assert outcome.spread > 0.2
    assert outcome.difference < 1e-3
    assert outcome.wrong == 0
