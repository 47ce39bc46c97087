"""Blocks of GGUF files that stay as they are, against the package gguf's dequantization."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.gguf_blocks import random_blocks
from tests.helpers.loading import load
from tests.helpers.paged_sequences import PagedSequences
from tests.helpers.tiny_gguf_families import VARIANTS, write_family
from tests.workers.models.test_sharding import part
from tests.workers.models.test_weights import CPU
from tests.workers.quantization.checkpoints import assert_ranks_have_the_whole, weight_of
from tests.workers.quantization.folders import assert_stands_for
from workers.errors import ModelUnavailable, UnsupportedModel
from workers.models import gguf_architectures
from workers.models.gguf import GgufModel
from workers.models.gguf_convert import convert_gguf
from workers.models.transformers_path import TransformersModel
from workers.quantization.gguf import BLOCKS, GGUFMethod
from workers.quantization.method import Cut, Size
from workers.slices import Range

WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 512, "head_dim": 64}
"""Sizes of which blocks of 256 are a part."""


def wide(variant: str) -> dict[str, Any]:
    """WIDE, with more heads where the rotary embedding has a factor for each of its frequencies."""
    heads = {"head_dim": 16, "num_attention_heads": 16} if "long" in variant else {}
    return WIDE | {"moe_intermediate_size": 256} | heads


def method(kind: str) -> GGUFMethod:
    return GGUFMethod(BLOCKS[kind], {})


def dequantized(kind: str, blocks: Any) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]))


def folders(
    path: Path, variant: str, blocks: Callable[[str], str], **changed: Any
) -> tuple[Path, Path]:
    """A model in blocks, as it is prepared for serving, and the dense one that it stands for."""
    file, packed, dense = path / "model.gguf", path / "packed", path / "dense"
    write_family(file, variant, blocks, **changed)
    for folder in (packed, dense):
        folder.mkdir()
        convert_gguf(file, folder, packed=folder == packed)
    tensors = {name: torch.from_numpy(one.copy()) for name, one in GgufModel(file).tensors()}
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    return packed, dense


def mixed(name: str) -> str:
    """As llama.cpp's Q4_K_M: not all layers of a type, nor all that a fused decoder merges."""
    if name.startswith(("token_embd", "output")) or "attn_v" in name:
        return "Q6_K"
    return (
        "Q5_K"
        if "ffn_down" in name or "ffn_up_exps" in name
        else "Q8_0"
        if "attn_output" in name
        else "Q4_K"
    )


def test_what_is_kept_is_what_can_be_read() -> None:
    assert set(gguf_architectures.BLOCKS) == BLOCKS.keys()
    for one in BLOCKS.values():
        kind = gguf.GGMLQuantizationType[one.name]
        assert gguf.GGML_QUANT_SIZES[kind] == (one.inputs, one.bytes)


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_are_what_gguf_dequantizes_bit_for_bit(kind: str) -> None:
    blocks = random_blocks(kind, 37, 1024)
    expected = dequantized(kind, blocks)
    assert 0.5 < expected.std() < 2
    tensors = {"weight": torch.from_numpy(blocks)}
    found = weight_of(method(kind), tensors, Size(37, 1024))
    assert torch.equal(found.dense(torch.float32), expected)
    ids = torch.tensor([[3, 36], [3, 0]])
    assert torch.equal(found.rows(ids), expected[ids])


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_of_extreme_blocks(kind: str) -> None:
    """The least and the largest codes and scales that there are, of either sign."""
    inputs, n_bytes = BLOCKS[kind].inputs, BLOCKS[kind].bytes
    values = np.array([0, 0x7B, 0x80, 0xFB, 0x7F, 0x55], dtype=np.uint8)
    blocks = np.repeat(values[:, None], 2 * n_bytes, axis=1)
    blocks[values == 0x7F] &= 0x3B  # else scales are not numbers
    tensors = {"weight": torch.from_numpy(blocks)}
    found = weight_of(method(kind), tensors, Size(len(values), 2 * inputs))
    expected = dequantized(kind, blocks)
    assert expected.isfinite().all()
    assert torch.equal(found.dense(torch.float32), expected)


@pytest.mark.parametrize("kind", BLOCKS)
def test_ranks_have_the_whole(kind: str) -> None:
    size = Size(24, 1024, bias=True)
    tensors = {"weight": torch.from_numpy(random_blocks(kind, *size[:2])), "bias": torch.randn(24)}
    inputs = [Cut(None, [one]) for one in (Range(0, 256), Range(256, 1024))]
    outputs = [Cut([Range(0, 3), Range(8, 24)]), Cut([Range(3, 8)])]
    assert_ranks_have_the_whole(method(kind), tensors, size, inputs + outputs)


def test_a_block_is_not_divided() -> None:
    with pytest.raises(UnsupportedModel, match=r"blocks of 256 inputs \(Q4_K\), .* 0 to 384"):
        method("Q4_K").cut(Size(8, 768), Cut(None, [Range(0, 384)]))
    assert method("Q8_0").cut(Size(8, 768), Cut(None, [Range(384, 768)])) == {
        "weight": {1: [Range(12 * 34, 24 * 34)]}
    }


SMALL: list[tuple[str, str]] = [
    ("llama", "Q4_1"), ("qwen2", "Q5_0"), ("phi3", "Q4_0"), ("gemma2", "Q8_0"), ("qwen3", "Q5_1"),
]  # fmt: skip
LARGE = [("smollm3", "Q4_K"), ("llama, biases", "Q2_K")]


@pytest.mark.parametrize(
    ("variant", "kind"),
    [
        *SMALL,
        *LARGE,
        *(
            pytest.param(variant, kind, marks=pytest.mark.full)
            for variant in VARIANTS
            for kind in BLOCKS
            if (variant, kind) not in (*SMALL, *LARGE)
        ),
    ],
)
def test_a_model_computes_with_what_its_blocks_stand_for(
    tmp_path: Path, variant: str, kind: str
) -> None:
    sizes = wide(variant) if BLOCKS[kind].inputs == 256 else {}
    packed, dense = folders(tmp_path, variant, lambda name: kind, **sizes)
    assert_stands_for(packed, dense, fused=variant != "qwen3moe")


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param(one, marks=() if one in ("gemma3", "qwen3moe") else pytest.mark.full)
        for one in VARIANTS
    ],
)
def test_a_model_of_several_types(tmp_path: Path, variant: str) -> None:
    packed, dense = folders(tmp_path, variant, mixed, **wide(variant))
    assert_stands_for(packed, dense, fused=variant != "qwen3moe")


@pytest.mark.parametrize("kinds", [("Q4_K", "Q6_K"), ("Q5_0", "Q4_1"), ("Q8_0", "Q3_K")])
def test_gate_and_up_may_be_of_two_types(tmp_path: Path, kinds: tuple[str, str]) -> None:
    def blocks(name: str) -> str:
        return kinds[0] if "ffn_gate" in name else kinds[1] if "ffn_up" in name else "Q8_0"

    packed, dense = folders(tmp_path, "llama", blocks, **WIDE, num_hidden_layers=2)
    assert_stands_for(packed, dense, fused=True)


def test_a_tied_head_and_its_embedding_are_in_memory_once(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, "smollm3", lambda name: "Q8_0")
    stored = sum(one.nbytes for one in load_file(packed / "model.safetensors").values())
    for implementation in ("fused", "transformers"):
        model = load(packed, torch.float32, CPU, implementation=implementation)
        assert model.weight_bytes < 1.1 * stored


@pytest.mark.parametrize("kind", BLOCKS)
def test_weights_take_no_more_than_a_tenth_more_than_the_file(tmp_path: Path, kind: str) -> None:
    sizes = WIDE | {"vocab_size": 256, "num_hidden_layers": 1}
    packed, _ = folders(tmp_path, "qwen2", lambda name: kind, **sizes)
    stored = sum(one.nbytes for one in load_file(packed / "model.safetensors").values())
    model = load(packed, torch.bfloat16, CPU)
    # Scales and minimums of Q2_K, of 4 bits, take a byte each.
    assert 0.9 * stored < model.weight_bytes <= (1.2 if kind == "Q2_K" else 1.1) * stored


@pytest.mark.parametrize(
    ("kind", "rounds"), [("Q4_1", True), ("Q8_0", True), ("Q5_K", True), ("Q6_K", False)]
)
def test_activations_in_int8_are_near_those_that_are_not(
    tmp_path: Path, kind: str, rounds: bool
) -> None:
    packed, _ = folders(tmp_path, "llama", lambda name: kind, **WIDE, num_hidden_layers=2)
    exact = torch.cat(PagedSequences(load(packed, torch.float32, CPU)).run())
    plain = load(packed, torch.bfloat16, CPU)
    for implementation in ("fused", "transformers"):
        model = load(packed, torch.bfloat16, CPU, implementation, round_activations=True)
        assert model.quantization == f"gguf ({kind}), activations in int8"
        assert any("activations stay as they are" in note for note in model.notes) != rounds
        found = torch.cat(PagedSequences(model).run()).float()
        assert (found - exact).square().mean().sqrt() < 0.05 * exact.std()
    equal = torch.equal(found, torch.cat(PagedSequences(plain).run()).float())
    assert not (rounds and equal)


@pytest.mark.parametrize(
    ("dtype", "quantize", "why"),
    [
        (torch.float32, "gguf", "for models on a CPU in bfloat16, .* cpu in float32: leave it out"),
        (torch.bfloat16, "", r"those of this model are not: use --quantize int8"),
        (torch.bfloat16, "fp8", "those of this model are in fp8, 8 bits in rows: leave it out"),
    ],
)
def test_activations_in_int8_where_they_have_no_meaning(
    tmp_path: Path, dtype: torch.dtype, quantize: str, why: str
) -> None:
    packed, dense = folders(tmp_path, "llama", lambda name: "Q4_0")
    folder = packed if quantize == "gguf" else dense
    with pytest.raises(UnsupportedModel, match=why):
        load(folder, dtype, CPU, quantize=quantize, round_activations=True)


def test_ranks_have_whole_blocks(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, "llama", lambda name: "Q4_1")
    parts = [part(packed, rank, 2) for rank in range(2)]
    downs = [one.module.model.layers[1].mlp.down_proj for one in parts]
    assert [one.in_features for one in downs] == [32, 64]
    name = "model.layers.1.mlp.down_proj.weight"
    assert [one.weights.slices[name] for one in parts] == [
        {1: [Range(0, 20)]},
        {1: [Range(20, 60)]},
    ]


def test_columns_of_an_mlp_are_together_as_its_output_layer_has_them(tmp_path: Path) -> None:
    def blocks(name: str) -> str:  # as llama.cpp's, where the columns are no multiple of 256
        return "Q4_K" if "ffn_gate" in name or "ffn_up" in name else "Q8_0"

    packed, _ = folders(tmp_path, "llama", blocks, **{**WIDE, "intermediate_size": 352})
    layers = [part(packed, rank, 2).module.model.layers[1].mlp for rank in range(2)]
    assert [one.down_proj.in_features for one in layers] == [160, 192]
    assert [one.up_proj.out_features for one in layers] == [160, 192]


def test_a_model_whose_blocks_would_be_divided_is_refused(tmp_path: Path) -> None:
    packed, _ = folders(tmp_path, "llama", lambda name: "Q4_K", **WIDE)
    with pytest.raises(UnsupportedModel, match=r"o_proj cannot .* blocks of 256 .* 0 to 128"):
        part(packed, 0, 2)


def test_norms_keep_what_the_file_has(tmp_path: Path) -> None:
    packed, dense = folders(tmp_path, "gemma2", lambda name: "Q4_0")
    found, expected = (
        load(one, torch.float32, CPU, implementation="transformers") for one in (packed, dense)
    )
    assert isinstance(found, TransformersModel)
    assert isinstance(expected, TransformersModel)
    norms = [one.module.model.layers[3].input_layernorm.weight for one in (found, expected)]
    assert torch.equal(*norms)


def test_what_has_no_blocks_that_are_kept(tmp_path: Path) -> None:
    write_family(tmp_path / "model.gguf", "llama")
    with pytest.raises(ModelUnavailable, match=r"it has none that can be: its tensors are F32"):
        convert_gguf(tmp_path / "model.gguf", tmp_path, packed=True)


def test_a_plain_model_is_refused(tmp_path: Path) -> None:
    _, dense = folders(tmp_path, "llama", lambda name: "Q4_0")
    with pytest.raises(UnsupportedModel, match="serves a GGUF file with its blocks as they are"):
        load(dense, torch.float32, CPU, quantize="gguf")
    with pytest.raises(UnsupportedModel, match="--quantize awq does not fit"):
        load(tmp_path / "packed", torch.float32, CPU, quantize="awq")
    model = load(tmp_path / "packed", torch.float32, CPU, quantize="gguf")
    assert model.quantization == "gguf (Q4_0)"
