"""What a model gets from a checkpoint, against transformers' own `from_pretrained`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from tests.helpers.loading import load, pretrained
from tests.helpers.our_layers import tensors_of
from tgi_async.supervisor import ENVIRONMENT
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.pretrained import Pretrained
from workers.models.transformers_path import TransformersModel
from workers.models.weight_files import SINGLE
from workers.quantization import plain
from workers.quantization.plain import ReorderedWeight
from workers.slices import Range, cut, divide, within

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 32,
    "shared_expert_intermediate_size": 40,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_experts": 5,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MULTI_HEAD = frozenset({"gpt_neox", "opt"})
"""Families with keys and values for every query head, whatever a config says."""
KINDS = ["llama", "gemma3_text", "gpt_neox", "mixtral", "opt", "phi3", "qwen2_moe"]


def saved(folder: Path, kind: str, **changed: Any) -> Path:
    """A model of random weights, no bias 0, no norm 1, attention and experts of consequence, laid
    out as its checkpoints are: the experts one by one."""
    torch.manual_seed(0)
    heads = {"num_key_value_heads": SIZES["num_attention_heads"]} if kind in MULTI_HEAD else {}
    config = AutoConfig.for_model(kind, **{**SIZES, **heads, **changed})
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, one in model.named_parameters():
            if "norm" in name:
                one.uniform_(0.5, 1.5)
            else:
                one.normal_(0.0, 1.6 * one.shape[-1] ** -0.5 if one.dim() > 1 else 0.3)
    model.save_pretrained(folder)
    return folder


def complete(folder: Path, dtype: torch.dtype = torch.float32) -> Pretrained:
    loaded = pretrained(folder, dtype=dtype)
    loaded.complete()
    return loaded


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_transformers(tmp_path: Path, kind: str, dtype: torch.dtype) -> None:
    folder = saved(tmp_path, kind)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    expected = {**dict(theirs.named_parameters()), **dict(theirs.named_buffers())}
    found = tensors_of(complete(folder, dtype).module)
    assert expected.keys() <= found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


def test_a_tied_head_is_the_embedding_itself(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama", tie_word_embeddings=True)
    assert "lm_head.weight" not in load_file(folder / SINGLE)
    loaded = complete(folder)
    (head,) = loaded.module.lm_head.tensors
    assert head.data_ptr() == loaded.module.model.embed_tokens.tensors[0].data_ptr()
    assert loaded.weight_bytes == sum(
        one.nbytes for one in AutoModelForCausalLM.from_pretrained(folder).parameters()
    )


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch has no oneDNN")
def test_weights_in_onednns_order_are_counted_and_give_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have no storage. Processors with fast bfloat16 take them where there is no compiler."""
    folder = saved(tmp_path, "llama", tie_word_embeddings=False)
    expected = load(folder, torch.float32, CPU, implementation="transformers")
    monkeypatch.setattr(plain, "form_of", lambda device, dtype: (ReorderedWeight, None))
    model = load(folder, torch.float32, CPU, implementation="transformers")
    assert isinstance(model, TransformersModel)
    assert isinstance(model.module.lm_head.weight, ReorderedWeight)
    assert model.weight_bytes == expected.weight_bytes
    x = torch.randn(3, SIZES["hidden_size"])
    logits = expected.module.lm_head(x)  # type: ignore[attr-defined]
    torch.testing.assert_close(model.module.lm_head(x), logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("same", [True, False])
def test_a_tied_head_that_the_checkpoint_has_too(tmp_path: Path, same: bool) -> None:
    folder = saved(tmp_path, "llama", tie_word_embeddings=True)
    tensors = load_file(folder / SINGLE)
    embedding = tensors["model.embed_tokens.weight"]
    tensors["lm_head.weight"] = embedding.clone() if same else embedding + 1
    save_file(tensors, folder / SINGLE)
    loaded = complete(folder)
    (head,) = loaded.module.lm_head.tensors
    assert torch.equal(head, tensors["lm_head.weight"])
    assert (head.data_ptr() == loaded.module.model.embed_tokens.tensors[0].data_ptr()) == same


def test_several_files_are_one_checkpoint(tmp_path: Path) -> None:
    whole, parts = saved(tmp_path / "whole", "mixtral"), tmp_path / "parts"
    AutoModelForCausalLM.from_pretrained(whole).save_pretrained(parts, max_shard_size="50KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    one, other = tensors_of(complete(whole).module), tensors_of(complete(parts).module)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x: x.pop("model.layers.1.mlp.up_proj.weight"), r"lacks tensors.*layers\.1\.mlp"),
        (
            lambda x: x.update({"model.norm.weight": torch.ones(7)}),
            r"model\.norm\.weight is \[7\] in the checkpoint and \[32\] by the config",
        ),
    ],
)
def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path, spoil: Any, message: str) -> None:
    folder = saved(tmp_path, "llama")
    tensors = load_file(folder / SINGLE)
    spoil(tensors)
    save_file(tensors, folder / SINGLE)
    with pytest.raises(BrokenCheckpoint, match=message):
        load(folder, torch.float32, CPU)


def test_tensors_that_the_model_has_no_place_for_are_left_out_and_named(tmp_path: Path) -> None:
    """As in transformers: training leaves heads behind that nothing here reads."""
    folder = saved(tmp_path, "llama")
    tensors = load_file(folder / SINGLE)
    save_file(tensors | {"v_head.summary.weight": torch.ones(2)}, folder / SINGLE)
    model = load(folder, torch.float32, CPU)
    assert [note for note in model.notes if "left out: v_head.summary.weight" in note]


def test_old_checkpoints_may_have_rotary_frequencies(tmp_path: Path) -> None:
    folder = saved(tmp_path, "llama")
    tensors = load_file(folder / SINGLE)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
    save_file(tensors, folder / SINGLE)
    expected = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    found = complete(folder).module.model.rotary_emb.inv_freq
    assert torch.equal(found, expected.model.rotary_emb.inv_freq)


@pytest.mark.parametrize(
    "slices",
    [
        {1: [Range(8, 16), Range(32, 40)]},
        {1: [Range(20, 30)]},
        {0: [Range(1, 3)]},
        {0: [Range(4, 5)], 2: [Range(3, 9)]},
    ],
)
def test_of_experts_only_what_is_needed_is_taken(tmp_path: Path, slices: Any) -> None:
    folder = saved(tmp_path, "mixtral", intermediate_size=24)
    assert any("experts.4.w1" in name for name in load_file(folder / SINGLE))
    name = "model.layers.1.mlp.experts.gate_up_proj"
    whole = tensors_of(complete(folder).module)[name]
    loaded = pretrained(folder)
    loaded.weights.slices = {name: slices}
    loaded.complete()
    assert torch.equal(tensors_of(loaded.module)[name], cut(whole, slices))


def test_ranges_within_a_part() -> None:
    assert within([Range(2, 6), Range(9, 12)], Range(4, 10)) == [Range(0, 2), Range(5, 6)]
    assert within([Range(0, 4)], Range(4, 8)) == []


@pytest.mark.parametrize(("n", "parts", "unit"), [(3, 2, 1), (3, 4, 1), (200, 3, 2), (1536, 4, 64)])
def test_a_division_is_whole_and_even(n: int, parts: int, unit: int) -> None:
    ranges = divide(n, parts, unit)
    assert [one.start for one in ranges] == [0, *(one.end for one in ranges[:-1])]
    assert ranges[-1].end == n
    sizes = [one.size for one in ranges]
    assert max(sizes) - min(sizes) <= unit
    assert all(size % unit == 0 for size in sizes)


MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from transformers.models.llama import modeling_llama
from tgi_async.wire.messages import ModelConfig
from workers import native
from workers.models.loading import load
native.kernels()
dtype = getattr(torch, sys.argv[3])

def memory(name):
    return 1024 * int(re.search(rf"{name}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

# What is loaded once for any model is there before: a small one goes first.
load(ModelConfig(sys.argv[2], implementation=sys.argv[4]), dtype, torch.device("cpu"))
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
before = memory("VmRSS")
config = ModelConfig(sys.argv[1], implementation=sys.argv[4])
model = load(config, dtype, torch.device("cpu"))
print(json.dumps([memory("VmHWM") - before, model.weight_bytes]))
"""


@pytest.mark.model
@pytest.mark.parametrize(
    ("dtype", "implementation"),
    [
        ("float32", "fused"),
        pytest.param("bfloat16", "fused", marks=pytest.mark.full),
        pytest.param("float32", "transformers", marks=pytest.mark.full),
        pytest.param("bfloat16", "transformers", marks=pytest.mark.full),
    ],
)
def test_loading_takes_little_more_than_the_weights(
    model_folder: Path, tmp_path: Path, dtype: str, implementation: str
) -> None:
    small = saved(tmp_path, "llama", hidden_size=64)
    command = [sys.executable, "-c", MEASURE, str(model_folder), str(small), dtype, implementation]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | ENVIRONMENT
    )
    peak, weights = json.loads(done.stdout.splitlines()[-1])
    print(f"{dtype}, {implementation}: {weights / 1e6:.0f} MB, peak {peak / 1e6:.0f} MB")
    assert peak <= 1.1 * weights
