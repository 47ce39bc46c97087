"""Checkpoints of draft models with random weights, for the sizes of `tiny_llama`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.helpers.tiny_llama import VOCABULARY

HIDDEN = 64
INNER = 48
MEDUSA_FILE = "medusa_lm_head.safetensors"
Tensors = dict[str, torch.Tensor]


def save_draft_model(
    folder: Path, config: dict[str, Any], tensors: Tensors, name: str = "model.safetensors"
) -> Path:
    """Write a checkpoint into `folder`, which need not be there."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / name)
    return folder


def medusa_config(n_heads: int = 3, n_layers: int = 1, base: str = "org/model") -> dict[str, Any]:
    return {
        "medusa_num_heads": n_heads,
        "medusa_num_layers": n_layers,
        "base_model_name_or_path": base,
    }


def medusa_tensors(
    n_heads: int = 3, n_layers: int = 1, *, own_heads: bool = True, vocabulary: int = VOCABULARY
) -> Tensors:
    """Of Medusa v1, or without heads of their own of v2."""
    torch.manual_seed(3)
    found = {}
    for at in range(n_heads):
        for layer in range(n_layers):
            found[f"{at}.{layer}.linear.weight"] = 2.0 * torch.randn(HIDDEN, HIDDEN) * HIDDEN**-0.5
            found[f"{at}.{layer}.linear.bias"] = torch.randn(HIDDEN)
        if own_heads:
            found[f"{at}.{n_layers}.weight"] = torch.randn(vocabulary, HIDDEN)
    return found


def as_vllm_has_it(tensors: Tensors, n_layers: int = 1, prefix: str = "") -> Tensors:
    """The same Medusa heads as vLLM names them."""
    found = {}
    for name, one in tensors.items():
        at, layer, *rest = name.split(".")
        if int(layer) == n_layers:
            found[f"{prefix}lm_heads.{at}.weight"] = one
        else:
            found[f"{prefix}blocks.{at}.layers.{layer}.{rest[-1]}"] = one
    return found


def mlp_config(
    n_predict: int = 3, *, tied: bool = False, scaled: bool = False, base: str = "org/model"
) -> dict[str, Any]:
    return {
        "architectures": ["MLPSpeculatorPreTrainedModel"],
        "model_type": "mlp_speculator",
        "n_predict": n_predict,
        "emb_dim": HIDDEN,
        "inner_dim": INNER,
        "vocab_size": VOCABULARY,
        "tie_weights": tied,
        "scale_input": scaled,
        "base_model_name_or_path": base,
    }


def mlp_tensors(n_predict: int = 3, *, tied: bool = False, vocabulary: int = VOCABULARY) -> Tensors:
    torch.manual_seed(4)
    found = {}
    for at in range(n_predict):
        size = INNER if at else HIDDEN
        if at < 2 or not tied:
            found[f"speculator.proj.{at}.weight"] = torch.randn(INNER, size) * size**-0.5
        if at < 1 or not tied:
            found[f"speculator.emb.{at}.weight"] = torch.randn(vocabulary, INNER)
            found[f"speculator.ln.{at}.weight"] = 0.5 + torch.rand(INNER)
            found[f"speculator.ln.{at}.bias"] = 0.2 * torch.randn(INNER)
            found[f"speculator.head.{at}.weight"] = torch.randn(vocabulary, INNER)
    return found
