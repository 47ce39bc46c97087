"""A model that went into a GGUF file and comes out of it computes what it computed before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.helpers.tiny_gguf_families import VARIANTS, write_family
from workers.models.description import read_config
from workers.models.gguf import GgufModel
from workers.models.gguf_architectures import ARCHITECTURES
from workers.models.gguf_convert import convert_gguf

PROMPT = torch.arange(3, 43)[None] * 5 % 250


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(PROMPT).logits
    return result


def converted(tmp_path: Path, variant: str) -> Path:
    folder = tmp_path / "converted"
    folder.mkdir()
    convert_gguf(tmp_path / "model.gguf", folder)
    return folder


def test_every_architecture_is_tried() -> None:
    assert {name for name, _, _ in VARIANTS.values()} == ARCHITECTURES.keys()


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_converted_model_has_the_logits_of_its_source(tmp_path: Path, variant: str) -> None:
    source = write_family(tmp_path / "model.gguf", variant)

    folder = converted(tmp_path, variant)

    read_config(folder, trust_remote_code=False)
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    model, loading = loaded
    assert not any(loading.values())
    torch.testing.assert_close(logits(model), logits(source), rtol=1e-5, atol=1e-5)
    assert model.config.bos_token_id == 1
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 2)


@pytest.mark.parametrize("variant", ["llama", "qwen2", "qwen3", "phi3", "gemma2", "gemma3"])
def test_transformers_reads_the_same_tensors_from_the_file(tmp_path: Path, variant: str) -> None:
    source = write_family(tmp_path / "model.gguf", variant)

    theirs = load_gguf_checkpoint(
        tmp_path / "model.gguf", return_tensors=True, model_to_load=source
    )["tensors"]

    ours = dict(GgufModel(tmp_path / "model.gguf").tensors())
    assert ours.keys() == theirs.keys()
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name].numpy(), err_msg=name)
