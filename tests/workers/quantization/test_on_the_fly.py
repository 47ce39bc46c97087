"""Plain checkpoints that are quantized while they are loaded."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.paged_sequences import PagedSequences
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.folders import (
    SIZES,
    assert_near,
    assert_ranks_have_all_experts,
    plain_logits,
)
from tgi_async.wire.messages import ModelConfig
from workers.errors import UnsupportedModel
from workers.models.loading import FusedModel, Loaded, load
from workers.quantization.method import Cut, Size
from workers.quantization.on_the_fly import FP4, NF4, ROUNDINGS, OnTheFlyMethod
from workers.slices import Range

FLAGS = sorted(ROUNDINGS)
MOST_ERROR = {8: 0.02, 4: 0.16}
"""Root mean square of what rounding adds, of that of the weights, by bits."""


def weight(n: int, k: int) -> torch.Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(n)).bfloat16()


def quantize(flag: str, given: torch.Tensor, cut: Cut | None = None) -> torch.Tensor:
    """What the weight stands for that is made of this one."""
    size = Size(*given.shape)
    found = OnTheFlyMethod(flag).weight({"weight": given}, size, cut or Cut(), torch.float32)
    return found.dense(torch.float32)


def loaded(folder: Path, flag: str, dtype: torch.dtype, implementation: str = "auto") -> Loaded:
    config = ModelConfig(str(folder), implementation=implementation, quantize=flag)
    return load(config, dtype, CPU)


@pytest.mark.parametrize("flag", FLAGS)
def test_a_weight_is_near_what_it_was_made_of(flag: str) -> None:
    given = weight(96, 128)
    given[3] = 0
    given[5, 64:] = 0
    made = quantize(flag, given)
    bits = ROUNDINGS[flag].bits
    error = (made - given.float()).square().mean().sqrt() / given.float().square().mean().sqrt()
    assert error < MOST_ERROR[bits] * (2 if flag == "fp8" else 1)
    assert (made[3] == 0).all()


@pytest.mark.parametrize(("flag", "table"), [("bitsandbytes-nf4", NF4), ("bitsandbytes-fp4", FP4)])
def test_a_table_gives_the_nearest_of_its_values(flag: str, table: tuple[float, ...]) -> None:
    given = weight(16, 128)
    largest = given.float().view(-1, 64).abs().amax(1, keepdim=True)
    values = torch.tensor(table)
    nearest = (given.float().view(-1, 64)[..., None] / largest[..., None] - values).abs().amin(-1)
    made = (quantize(flag, given).view(-1, 64) - given.float().view(-1, 64)).abs() / largest
    torch.testing.assert_close(made, nearest, atol=1e-6, rtol=0)


@pytest.mark.parametrize("flag", FLAGS)
def test_ranks_have_together_what_one_has(flag: str) -> None:
    given = weight(96, 128)
    whole = quantize(flag, given)
    by_inputs = [quantize(flag, given, Cut(None, [one])) for one in (Range(0, 64), Range(64, 128))]
    assert torch.equal(torch.cat(by_inputs, 1), whole)
    by_outputs = [
        OnTheFlyMethod(flag)
        .weight({"weight": given[one.start : one.end]}, Size(96, 128), Cut([one]), torch.float32)
        .dense(torch.float32)
        for one in (Range(0, 32), Range(32, 96))
    ]
    assert torch.equal(torch.cat(by_outputs), whole)


@pytest.mark.parametrize(
    ("kind", "flag"),
    [("llama", "int8"), ("qwen2", "int4"), ("phi3", "eetq"), ("gemma2", "fp8"),
     ("llama", "bitsandbytes"), ("qwen2", "bitsandbytes-nf4"), ("mixtral", "bitsandbytes-fp4"),
     ("gpt_oss", "int4"),
     *(pytest.param(*one, marks=pytest.mark.full)
       for one in (("qwen2_moe", "int8"), ("qwen3_moe", "fp8"), ("gpt_oss", "int8")))],
)  # fmt: skip
def test_float32_computes_with_what_the_weights_stand_for(
    tmp_path: Path, kind: str, flag: str
) -> None:
    more = {"head_dim": 32} if kind == "gpt_oss" else {}
    folder = saved(tmp_path / "plain", kind, tie_word_embeddings=False, **SIZES, **more)
    dense = tmp_path / "dense"
    dense.mkdir()
    for file in folder.iterdir():
        (dense / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if re.search(r"(_proj|qkv|shared_expert_gate|\.w[123])\.weight$", name):
            tensors[name] = quantize(flag, tensor)
        elif re.search(r"experts\.\w+_proj$", name):  # [experts, inputs, outputs]
            tensors[name] = torch.stack(
                [quantize(flag, one.t().contiguous()).t() for one in tensor]
            )
        elif name == "lm_head.weight" and ROUNDINGS[flag].of_inputs:
            tensors[name] = quantize("int8", tensor)
    save_file(tensors, dense / "model.safetensors", {"format": "pt"})
    expected = plain_logits(dense)
    model = loaded(folder, flag, torch.float32)
    assert isinstance(model, FusedModel) == (kind in ("llama", "qwen2", "phi3", "gemma2"))
    assert model.quantization.startswith(f"{flag}, {ROUNDINGS[flag].bits} bits in ")
    for implementation in ("auto", "transformers"):
        model = loaded(folder, flag, torch.float32, implementation)
        assert_near(PagedSequences(model).run(), expected)


@pytest.mark.parametrize(("kind", "flag"), [("gpt_oss", "int4"), ("mixtral", "int8")])
def test_ranks_have_together_the_experts_of_one(tmp_path: Path, kind: str, flag: str) -> None:
    sizes = {**SIZES, "intermediate_size": 96, "head_dim": 32}
    assert_ranks_have_all_experts(saved(tmp_path, kind, **sizes), flag)


@pytest.mark.parametrize("flag", ["int8", "int4", "eetq"])
def test_bfloat16_is_near_float32(tmp_path: Path, flag: str) -> None:
    """Where activations are rounded to int8, too."""
    folder = saved(tmp_path / "plain", "llama", **SIZES)
    file = folder / "model.safetensors"
    # Rounded after they were quantized, some would be other codes.
    save_file({name: x.bfloat16() for name, x in load_file(file).items()}, file, {"format": "pt"})
    exact = torch.cat(PagedSequences(loaded(folder, flag, torch.float32)).run())
    found = torch.cat(PagedSequences(loaded(folder, flag, torch.bfloat16)).run()).float()
    assert (found - exact).square().mean().sqrt() < 0.05 * exact.std()


def test_what_cannot_be_in_groups_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "plain", "llama", hidden_size=48, num_attention_heads=2)
    with pytest.raises(UnsupportedModel, match=r"groups of 32 inputs, .* use --quantize int8"):
        loaded(folder, "int4", torch.float32)
    with pytest.raises(UnsupportedModel, match="--quantize awq asks for weights that are"):
        loaded(folder, "awq", torch.float32)
