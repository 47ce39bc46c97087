"""A quantization method that only this folder knows, through every part that asks a method."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.integration.reference import Reference
from tests.integration.running_engine import finish_all, running_engine
from tests.workers.loading import load
from tests.workers.paged_sequences import PagedSequences
from tests.workers.quantization.toy import ToyMethod, dequantized
from tests.workers.test_sharding import part
from tests.workers.test_weights import saved
from tgi_async.generation import GenerationRequest
from tgi_async.wire.messages import Sampling
from workers.errors import Unsupported
from workers.layers.experts import SeparateExperts
from workers.layers.linear import Linear
from workers.models.transformers_path import TransformersModel
from workers.models.weight_files import SINGLE
from workers.quantization.registry import METHODS
from workers.slices import Range

CPU = torch.device("cpu")
GROUP = 8
WORKER = (sys.executable, "-m", "tests.workers.quantization.toy")
QUANTIZED = re.compile(r"(.*\.(?:\w+_proj|w[123]))\.weight")
MOST_DIFFERENCE = 2e-4


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, ToyMethod.name, ToyMethod)


def quantize(dense: Path, folder: Path, **changed: Any) -> Path:
    """Write a model with its linear layers quantized, and have the dense one stand for the same."""
    tensors = load_file(dense / SINGLE)
    packed, rounded = dict(tensors), dict(tensors)
    for key, weight in tensors.items():
        if (found := QUANTIZED.fullmatch(key)) is None:
            continue
        groups = weight.unflatten(1, (-1, GROUP))
        scales = (groups.abs().amax(-1) / 127).half()
        codes = (groups / scales.float()[..., None]).round().clamp(-127, 127)
        codes = codes.flatten(1).to(torch.int8)
        del packed[key]
        packed |= {f"{found[1]}.codes": codes, f"{found[1]}.scales": scales}
        rounded[key] = dequantized(codes, scales)
    assert len(packed) > len(tensors)
    shutil.copytree(dense, folder)
    save_file(packed, folder / SINGLE, {"format": "pt"})
    save_file(rounded, dense / SINGLE, {"format": "pt"})
    settings = {"quant_method": ToyMethod.name, "group_size": GROUP}
    config = json.loads((dense / "config.json").read_text())
    config |= {"quantization_config": settings | changed}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def logits_of(folder: Path) -> list[torch.Tensor]:
    return PagedSequences(load(folder, torch.float32, CPU)).run()


def assert_near(
    found: list[torch.Tensor], expected: list[torch.Tensor], most: float = MOST_DIFFERENCE
) -> None:
    for one, other in zip(found, expected, strict=True):
        assert other.std() > 0.3  # so that the difference below says something
        assert (one - other).abs().max() < most


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gemma2", "mixtral", "qwen2_moe", "phi3"])
def test_logits_are_those_of_what_the_weights_stand_for(tmp_path: Path, kind: str) -> None:
    dense = saved(tmp_path / "dense", kind)
    folder = quantize(dense, tmp_path / "toy")
    model = load(folder, torch.float32, CPU)
    assert isinstance(model, TransformersModel)
    linear = [one for one in model.module.modules() if isinstance(one, Linear)]
    assert sum(isinstance(one.method, ToyMethod) for one in linear) >= 8
    experts = [one for one in model.module.modules() if isinstance(one, SeparateExperts)]
    assert bool(experts) == (kind in ("mixtral", "qwen2_moe"))
    assert_near(PagedSequences(model).run(), logits_of(dense))


def test_a_tied_head_and_its_embedding_may_be_quantized_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ToyMethod, "for_layer", lambda self, name, kind: self)
    dense = saved(tmp_path / "dense", "llama", tie_word_embeddings=True)
    monkeypatch.setitem(
        globals(), "QUANTIZED", re.compile(r"(.*\.(?:\w+_proj|embed_tokens))\.weight")
    )
    folder = quantize(dense, tmp_path / "toy")
    model = load(folder, torch.float32, CPU)
    assert isinstance(model, TransformersModel)
    assert model.module.lm_head.weight is model.module.model.embed_tokens.weight
    assert_near(PagedSequences(model).run(), logits_of(dense))


def test_a_model_whose_method_has_no_weights_for_the_fused_decoder(tmp_path: Path) -> None:
    folder = quantize(saved(tmp_path / "dense", "llama", hidden_size=64), tmp_path / "toy")
    why = "weights in toy have no form for the kernel c_linear"
    with pytest.raises(Unsupported, match=why):
        load(folder, torch.float32, CPU, implementation="fused")
    assert [note for note in load(folder, torch.float32, CPU).notes if why in note]


def test_a_layer_that_the_method_leaves_alone_is_plain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of layers that a fused decoder merges, too: they stay apart."""
    skips = re.compile(r".*\.k_proj|.*embed_tokens|lm_head")
    monkeypatch.setattr(
        ToyMethod, "for_layer", lambda self, name, kind: None if skips.match(name) else self
    )
    monkeypatch.setitem(globals(), "QUANTIZED", re.compile(r"(.*\.(?!k_)(?:\w+_proj))\.weight"))
    monkeypatch.setattr(ToyMethod, "prepared", lambda self, kernel, sizes: lambda *weights: None)
    dense = saved(tmp_path / "dense", "llama", hidden_size=64)
    folder = quantize(dense, tmp_path / "toy")
    model = load(folder, torch.float32, CPU)
    assert [note for note in model.notes if "each is quantized in its own way: none, toy" in note]
    assert_near(PagedSequences(model).run(), logits_of(dense))


def test_a_method_that_nobody_has_added_is_named(tmp_path: Path) -> None:
    folder = quantize(saved(tmp_path / "dense", "llama"), tmp_path / "toy", quant_method="rot13")
    with pytest.raises(Unsupported, match=r"the weights are quantized \(rot13\)"):
        load(folder, torch.float32, CPU)


def test_ranks_have_whole_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "GROUP", 32)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 2}
    folder = quantize(saved(tmp_path / "dense", "llama", **sizes), tmp_path / "toy")
    parts = [part(folder, rank, 2) for rank in range(2)]
    layers = [one.module.model.layers[1].mlp for one in parts]
    assert [one.down_proj.in_features for one in layers] == [32, 64]
    assert [one.up_proj.out_features for one in layers] == [32, 64]
    name = "model.layers.1.mlp.down_proj"
    assert [one.weights.slices[f"{name}.codes"] for one in parts] == [
        {1: [Range(0, 32)]},
        {1: [Range(32, 96)]},
    ]
    assert [one.weights.slices[f"{name}.scales"] for one in parts] == [
        {1: [Range(0, 1)]},
        {1: [Range(1, 3)]},
    ]


def test_a_cut_through_a_group_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of heads, whose number does not go by groups: two of 16 numbers are on each rank."""
    monkeypatch.setitem(globals(), "GROUP", 64)
    sizes = {"hidden_size": 64, "intermediate_size": 128}
    folder = quantize(saved(tmp_path / "dense", "llama", **sizes), tmp_path / "toy")
    with pytest.raises(Unsupported, match="groups of 64 inputs are on one rank"):
        part(folder, 0, 2)


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "n_ranks"), [("llama", 1), ("llama", 2), ("mixtral", 2), ("qwen2_moe", 1)]
)
async def test_texts_over_the_wire_are_transformers(
    model_folder: Path, tmp_path: Path, kind: str, n_ranks: int
) -> None:
    dense = saved(tmp_path / "dense", kind, vocab_size=49152, intermediate_size=48)
    folder = quantize(dense, tmp_path / "toy")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder)
    prompts = [[11, 12, 13], list(range(100, 140)), [5] * 17]
    requests = [GenerationRequest(one, Sampling(), max_new_tokens=24) for one in prompts]
    async with running_engine(
        folder, n_blocks=40, model_impl="auto", world_size=n_ranks, command=WORKER
    ) as engine:
        texts = await finish_all(engine, requests, within=0.1)
    reference = Reference(dense)
    for prompt, text in zip(prompts, texts, strict=True):
        assert len(text.tokens) == 24 or text.finish_reason == "stop_sequence"
        reference.compare(prompt, text.tokens)
