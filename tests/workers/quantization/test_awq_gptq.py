"""AWQ and GPTQ, against layouts that are written bit by bit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.loading import load
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import (
    Rounded,
    assert_ranks_have_the_whole,
    quantized,
    rounded,
    weight_of,
    words,
)
from tests.workers.quantization.folders import (
    SIZES,
    GptqCase,
    assert_stands_for,
    awq_folder,
    gptq_folder,
    matrix,
)
from tests.workers.quantization.writers import awq, gptq
from workers.errors import UnsupportedModel
from workers.kernels.codes import PackedCodes
from workers.layers.experts import SeparateExperts
from workers.layers.linear import Linear
from workers.models.checkpoint import BrokenCheckpoint
from workers.quantization.awq import AWQMethod
from workers.quantization.codes import pack, unpack
from workers.quantization.gptq import GPTQMethod
from workers.quantization.grouped import GroupedWeight
from workers.quantization.method import Cut, Size
from workers.slices import Range

FORMATS = ("gptq", "gptq_v2")


def assert_is(found: object, weight: Rounded, bits: int) -> None:
    """Bit for bit in codes, scales and zero points."""
    assert isinstance(found, GroupedWeight)
    assert found.codes.bits == bits
    order = np.arange(found.k) if found.order is None else found.order.numpy()
    codes = unpack(found.codes.packed, bits, found.k).numpy()
    assert np.array_equal(codes, weight.codes[:, order])
    assert torch.equal(found.groups.scales, weight.scales)
    zeros = weight.zeros if found.groups.zeros is None else found.groups.zeros.numpy()
    assert np.array_equal(zeros, weight.zeros)
    if found.groups.zeros is None:
        assert (weight.zeros == 2 ** (bits - 1)).all()
    assert torch.equal(found.dense(torch.float32), weight.dense)
    x = matrix(5, found.k, 7)
    expected = torch.nn.functional.linear(x, weight.dense)
    torch.testing.assert_close(found.apply(x), expected, atol=1e-4, rtol=1e-5)
    ids = torch.tensor([[3, 0], [1, 3]])
    assert torch.equal(found.rows(ids), weight.dense[ids])


@pytest.mark.parametrize("bits", range(1, 9))
def test_codes_are_packed_as_one_stream_of_bits(bits: int) -> None:
    codes = torch.randint(2**bits, (3, 45), dtype=torch.uint8)
    packed = pack(codes, bits)
    expected = words(codes.numpy().astype(np.int64), bits).view(torch.uint8)
    assert torch.equal(packed, expected[:, : packed.shape[1]])
    assert packed.shape[1] == -(-45 * bits // 8)
    assert torch.equal(unpack(packed, bits, 45), codes)
    assert torch.equal(unpack(expected, bits, 45), codes)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("stored", FORMATS)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("size", [32, 64, -1])
def test_gptq_is_read_bit_for_bit(bits: int, stored: str, symmetric: bool, size: int) -> None:
    weight = rounded(matrix(64, 192), bits, size, symmetric=symmetric)
    assert symmetric or (weight.zeros == 0).any()
    method = GPTQMethod.of({"bits": bits, "group_size": size, "checkpoint_format": stored})
    tensors = gptq(weight, bits, v2=stored == "gptq_v2")
    slots = method.slots(Size(64, 192), torch.float32)
    assert {leaf: tuple(one.shape) for leaf, one in tensors.items()} == {
        leaf: slot.shape for leaf, slot in slots.items()
    }
    found = weight_of(method, tensors, Size(64, 192))
    assert_is(found, weight, bits)
    assert isinstance(found, GroupedWeight)
    assert (found.groups.zeros is None) == symmetric
    del tensors["g_idx"]
    assert_is(weight_of(method, tensors, Size(64, 192)), weight, bits)


def test_a_zero_point_of_0_borrows_from_its_neighbor() -> None:
    """As GPTQModel writes them: 0 8 0 15 3 0 7 1 are the nibbles 15 6 15 13 2 15 5 0."""
    zeros = [0, 8, 0, 15, 3, 0, 7, 1]
    weight = rounded(matrix(8, 32), 4, 32)._replace(zeros=np.array(zeros)[:, None])
    tensors = gptq(weight, 4)
    stored = int(tensors["qzeros"][0, 0]) % 2**32
    assert [stored >> shift & 15 for shift in range(0, 32, 4)] == [15, 6, 15, 13, 2, 15, 5, 0]
    assert_is(weight_of(GPTQMethod.of({"bits": 4, "group_size": 32}), tensors, Size(8, 32)),
              weight, 4)  # fmt: skip


@pytest.mark.parametrize("bits", [3, 4])
def test_inputs_in_the_order_of_their_activations(bits: int) -> None:
    group = np.random.default_rng(0).permutation(np.arange(192) // 64)
    weight = rounded(matrix(64, 192), bits, 64, group=group)
    method = GPTQMethod.of({"bits": bits, "group_size": 64, "desc_act": True})
    found = weight_of(method, gptq(weight, bits), Size(64, 192))
    assert isinstance(found, GroupedWeight)
    assert found.order is not None
    assert_is(found, weight, bits)
    # A rank has inputs of all groups, of some more than of others.
    cuts = [Cut(inputs=[Range(0, 96)]), Cut(inputs=[Range(96, 192)])]
    cuts += [Cut(outputs=[Range(0, 16), Range(40, 64)])]
    assert_ranks_have_the_whole(method, gptq(weight, bits), Size(64, 192), cuts)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_ranks_of_gptq(bits: int) -> None:
    weight = rounded(matrix(96, 192), bits, 64)
    method = GPTQMethod.of({"bits": bits, "group_size": 64})
    cuts = [Cut(inputs=[Range(0, 64)]), Cut(inputs=[Range(64, 192)]), Cut(inputs=[Range(32, 96)])]
    cuts += [Cut(outputs=[Range(0, 32)]), Cut(outputs=[Range(8, 16), Range(64, 96)])]
    assert_ranks_have_the_whole(method, gptq(weight, bits), Size(96, 192), cuts)
    row = GPTQMethod.of({"bits": bits, "group_size": -1})
    cuts = [Cut(inputs=[Range(0, 32)]), Cut(inputs=[Range(32, 192)])]
    weight = rounded(matrix(96, 192), bits, -1)
    assert_ranks_have_the_whole(row, gptq(weight, bits), Size(96, 192), cuts)


@pytest.mark.parametrize("size", [32, 64, 128, -1])
@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast", "llm-awq"])
def test_awq_is_read_bit_for_bit(version: str, size: int) -> None:
    weight = rounded(matrix(32, 384), 4, size)
    method = AWQMethod.of({"bits": 4, "group_size": size, "version": version.upper()})
    tensors = awq(weight, version)
    slots = method.slots(Size(32, 384), torch.float32)
    assert {leaf: tuple(one.shape) for leaf, one in tensors.items()} == {
        leaf: slot.shape for leaf, slot in slots.items()
    }
    assert_is(weight_of(method, tensors, Size(32, 384)), weight, 4)


@pytest.mark.parametrize("version", ["gemm", "gemv", "gemv_fast"])
def test_ranks_of_awq(version: str) -> None:
    weight = rounded(matrix(32, 384), 4, 128)
    method = AWQMethod.of({"group_size": 128, "version": version})
    cuts = [Cut(inputs=[Range(0, 128)]), Cut(inputs=[Range(192, 384)])]
    cuts += [Cut(outputs=[Range(0, 8)]), Cut(outputs=[Range(8, 16), Range(24, 32)])]
    if version != "gemv_fast":  # whose blocks are of 64 inputs
        cuts += [Cut(inputs=[Range(32, 96)])]
    assert_ranks_have_the_whole(method, awq(weight, version), Size(32, 384), cuts)


def test_cuts_that_cannot_be_had_say_what_can() -> None:
    method = AWQMethod.of({"group_size": 128})
    with pytest.raises(
        UnsupportedModel, match=r"8 of its numbers .* would have 4 to 12: .*--num-shard"
    ):
        method.cut(Size(32, 384), Cut(outputs=[Range(4, 12)]))
    with pytest.raises(UnsupportedModel, match="groups of 128 inputs would be cut at 0, 136"):
        method.cut(Size(32, 384), Cut(inputs=[Range(0, 136)]))


GPTQ_CASES: list[tuple[str, GptqCase]] = [
    ("llama", (4, "gptq", True, 32, False)),
    ("qwen2", (4, "gptq", False, 64, True)),
    ("phi3", (3, "gptq", False, 32, False)),
    ("mixtral", (4, "gptq", False, 32, False)),
]
LONG_CASES: list[tuple[str, GptqCase]] = [
    ("gemma2", (8, "gptq_v2", False, -1, False)),
    ("qwen2_moe", (2, "gptq_v2", True, 32, True)),
]


@pytest.mark.parametrize(
    ("kind", "case"),
    [*GPTQ_CASES, *(pytest.param(*one, marks=pytest.mark.full) for one in LONG_CASES)],
)
def test_logits_of_gptq(tmp_path: Path, kind: str, case: GptqCase) -> None:
    _check(*gptq_folder(tmp_path, kind, case), kind, case[0], case[2], case[4])


@pytest.mark.full
@pytest.mark.parametrize("kind", ["llama", "phi3", "mixtral", "opt", "gemma3_text"])
@pytest.mark.parametrize(
    "case", list(itertools.product((2, 3, 4, 8), FORMATS, (True, False), (32, -1), (True, False)))
)
def test_logits_of_every_gptq(tmp_path: Path, kind: str, case: GptqCase) -> None:
    _check(*gptq_folder(tmp_path, kind, case), kind, case[0], case[2], case[4])


@pytest.mark.parametrize(
    ("kind", "version"),
    [
        ("llama", "gemm"),
        ("qwen2", "gemv"),
        ("phi3", "gemv_fast"),
        pytest.param("mixtral", "gemm", marks=pytest.mark.full),
    ],
)
def test_logits_of_awq(tmp_path: Path, kind: str, version: str) -> None:
    _check(*awq_folder(tmp_path, kind, version), kind, 4, False, False)


FUSED = ("gemma2", "gemma3_text", "llama", "phi3", "qwen2")
MERGED = ("phi3",)
"""Families whose files have as one layer what the fused decoder multiplies as one, so that its
inputs have one order. Elsewhere each part may have another, which no merged layer can."""


def _check(
    folder: Path, dense: Path, kind: str, bits: int, symmetric: bool, reorders: bool
) -> None:
    fused = None if bits in (2, 3) else kind in (MERGED if reorders else FUSED)
    model = assert_stands_for(folder, dense, fused=fused)
    linear = [one for one in model.module.modules() if isinstance(one, Linear)]
    packed = [one.weight for one in linear if isinstance(one.weight, PackedCodes)]
    assert len(packed) >= 8
    # With zero points, few bits take the room of 4.
    assert {one.struct.bits for one in packed} == {bits if symmetric else max(4, bits)}
    experts = [one for one in model.module.modules() if isinstance(one, SeparateExperts)]
    assert bool(experts) == (kind in ("mixtral", "qwen2_moe"))


def test_layers_of_other_settings(tmp_path: Path) -> None:
    """By `dynamic`, as GPTQModel reads it; and a head."""
    dense = saved(tmp_path / "dense", "llama", vocab_size=96, tie_word_embeddings=False, **SIZES)

    def chosen(name: str) -> Any:
        if name.endswith("layers.0.self_attn.k_proj"):
            return None
        bits = 8 if "down_proj" in name else 4

        def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
            made = rounded(weight, bits, 64 if bits == 8 else 32)
            return gptq(made, bits), made.dense

        return write

    settings = {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "lm_head": True, "dynamic": {
            r"-:.*layers\.0\.self_attn\.k_proj": {},
            r"+:.*\.down_proj": {"bits": 8, "group_size": 64},
        },
    }  # fmt: skip
    linear = re.compile(r"(.*_proj|lm_head)\.weight")
    folder = quantized(dense, tmp_path / "gptq", chosen, settings, by_name=True, linear=linear)
    model = assert_stands_for(folder, dense)
    down = [layer.mlp.down_proj for layer in model.module.model.layers]
    assert [one.weight.struct.bits for one in down] == [8, 8]
    assert down[0].method is down[1].method
    assert model.module.lm_head.weight.struct.bits == 4
    assert not isinstance(model.module.model.layers[0].self_attn.k_proj.weight, PackedCodes)
    assert "other layers in other ways" in model.quantization


SPOILT: list[tuple[Callable[[dict[str, torch.Tensor]], object], str]] = [
    (
        lambda x: x.update(scales=x["scales"][1:]),
        r"gate_proj.scales is float16 \[1, 192\] in the checkpoint and .*float16.* \[2, 192\] by",
    ),
    (
        lambda x: x.update(qweight=x["qweight"].long()),
        r"gate_proj.qweight is int64 \[8, 192\] in the checkpoint and int32 \[8, 192\] by",
    ),
    (
        lambda x: x.update(g_idx=x["g_idx"] + 1),
        r"gate_proj: its g_idx has groups 1 to 2, and there are 2",
    ),
    (lambda x: x.pop("qzeros"), r"lacks tensors .*gate_proj.qzeros"),
]


@pytest.mark.parametrize(("spoil", "message"), SPOILT)
def test_a_file_that_is_not_what_it_says(
    tmp_path: Path, spoil: Callable[[dict[str, torch.Tensor]], object], message: str
) -> None:
    dense = saved(tmp_path / "dense", "llama", **SIZES)

    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        made = rounded(weight, 4, 32)
        tensors = gptq(made, 4)
        if weight.shape == (192, 64):
            spoil(tensors)
        return tensors, made.dense

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    folder = quantized(dense, tmp_path / "gptq", write, settings)
    with pytest.raises(BrokenCheckpoint, match=message):
        load(folder, torch.float32, CPU)


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (GPTQMethod, {"bits": 5}, "GPTQ of 5 bits; served are 2, 3, 4 and 8"),
        (GPTQMethod, {"bits": 4, "is_marlin_format": True}, "format marlin; served are gptq"),
        (AWQMethod, {"bits": 8}, "AWQ of 8 bits; 4 are served"),
        (AWQMethod, {"version": "exllama"}, "layout exllama; served are gemm"),
    ],
)
def test_settings_that_are_not_served(method: Any, settings: Any, message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        method.of(settings)


@pytest.mark.parametrize(
    ("kind", "linear", "message"),
    [
        ("gpt2", r"(.*\.c_attn)\.weight", r"h\.0\.attn\.c_attn is quantized .* for a Conv1D yet"),
        ("mixtral", r"(.*\.(?:w[123]|gate))\.weight", r"mlp\.gate is quantized .*TopKRouter yet"),
    ],
)
def test_layers_that_are_not_served_in_codes(
    tmp_path: Path, kind: str, linear: str, message: str
) -> None:
    dense = saved(tmp_path / "dense", kind, **SIZES)

    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        made = rounded(weight, 4, 32)
        return gptq(made, 4), made.dense

    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    folder = quantized(dense, tmp_path / "gptq", write, settings, linear=re.compile(linear))
    with pytest.raises(UnsupportedModel, match=message):
        load(folder, torch.float32, CPU)
