"""A KV cache of codes, from the checkpoint to logits: its dtype, its scales, what is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.helpers.kv_oracle import attend_codes
from tests.helpers.loading import load
from tests.helpers.tiny_llama import save_tiny_llama
from tests.workers.attention.toy import ToyAttention
from tests.workers.test_forward import TEXT, cache_of, chunk, decodes
from workers.attention.flash import FlashAttention, VarlenAttention
from workers.attention.kv_codes import CODES, E4M3, E5M2, UNSCALED, KvCodes, KvScales
from workers.attention.registry import Backend
from workers.errors import UnsupportedModel
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.kv_scales import codes_of
from workers.models.loading import Loaded
from workers.models.weight_files import SINGLE

CPU = torch.device("cpu")
LAYER = "model.layers.{}.self_attn.{}"
IMPLEMENTATIONS = ["fused", "transformers"]
NEAR = 2e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("llama"))


def with_scales(folder: Path, to: Path, scales: Mapping[str, Any]) -> Path:
    """Copy a folder, and put these tensors into its checkpoint."""
    to.mkdir()
    for name in ("config.json", "generation_config.json"):
        (to / name).write_text((folder / name).read_text())
    more = {name: torch.as_tensor(one).float() for name, one in scales.items()}
    save_file(load_file(folder / SINGLE) | more, to / SINGLE, {"format": "pt"})
    return to


def expected(folder: Path, codes: KvCodes, scales: list[KvScales]) -> torch.Tensor:
    """Return the logits of the text, [n, vocabulary], computed at once by transformers."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    attend_codes(model, codes, scales)
    with torch.inference_mode():
        logits: torch.Tensor = model(torch.tensor([TEXT])).logits[0]
    return logits


@torch.inference_mode()
def served(model: Loaded) -> torch.Tensor:
    """Return the same of chunks of a prompt and decode steps."""
    cache = cache_of(model)
    steps = [chunk(cache, 0, 7, [*range(7)]), chunk(cache, 7, 18, [*range(7, 18)])]
    steps += [decodes(cache, 18), decodes(cache, 19)]
    return torch.cat([model.forward(step).logits for step in steps])


def assert_near(found: torch.Tensor, logits: torch.Tensor) -> None:
    """Between two codes, a number that was added up in another order may become the other one."""
    difference = (found - logits).abs()
    assert float(difference.median()) < NEAR
    assert float(difference.max()) < 0.3


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("codes", CODES.values(), ids=lambda one: one.name)
def test_a_prompt_in_chunks_attends_what_transformers_would_of_the_codes(
    folder: Path, implementation: str, codes: KvCodes
) -> None:
    model = load(folder, torch.float32, CPU, implementation, kv_cache_dtype=codes.name)
    assert cache_of(model).codes is codes
    assert_near(served(model), expected(folder, codes, 2 * [UNSCALED]))
    exact = served(load(folder, torch.float32, CPU, implementation))
    assert float((exact - expected(folder, codes, 2 * [UNSCALED])).abs().median()) > 4 * NEAR


SPELLINGS: list[dict[str, float]] = [
    {"k_scale": 0.03, "v_scale": 0.007},
    {"kv_scale": 0.03},
    {"k_proj.k_scale": 0.03, "v_proj.v_scale": 0.007},
    {"qkv_proj.k_scale": 0.03, "qkv_proj.v_scale": 0.007},
    {"k_proj.output_scale": 0.03, "v_proj.output_scale": 0.007},
    {"v_scale": 0.007},
]


@pytest.mark.parametrize("spelling", SPELLINGS, ids=" ".join)
def test_the_scales_of_the_checkpoint_are_those_of_e4m3(
    folder: Path, tmp_path: Path, spelling: dict[str, float]
) -> None:
    named = {LAYER.format(1, leaf): torch.tensor([one]) for leaf, one in spelling.items()}
    scaled = with_scales(folder, tmp_path / "scaled", named)
    model = load(scaled, torch.float32, CPU, "fused", kv_cache_dtype="fp8_e4m3fn")
    both = spelling.get("kv_scale", 1.0)
    of_keys = ("k_scale", "k_proj.output_scale")
    of_values = (".v_scale", "v_proj.output_scale")
    key = next((one for leaf, one in spelling.items() if leaf.endswith(of_keys)), both)
    value = next((one for leaf, one in spelling.items() if leaf.endswith(of_values)), both)
    value = spelling.get("v_scale", value)
    scales = [UNSCALED, KvScales(*torch.tensor([key, value]).tolist())]
    assert cache_of(model).scales == scales
    assert [note for note in model.notes if "no scales for the KV cache of 1 of 2" in note]
    assert not any("no place for" in note for note in model.notes)
    assert_near(served(model), expected(folder, E4M3, scales))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_only_e4m3_has_scales_of_the_checkpoint(
    folder: Path, tmp_path: Path, implementation: str
) -> None:
    named: dict[str, Any] = {LAYER.format(at, "kv_scale"): 0.01 for at in range(2)}
    scaled = with_scales(folder, tmp_path / "scaled", named)
    model = load(scaled, torch.float32, CPU, implementation, kv_cache_dtype="fp8_e4m3fn")
    kept = KvScales(*2 * [float(torch.tensor(0.01))])
    assert cache_of(model).scales == 2 * [kept]
    assert_near(served(model), expected(folder, E4M3, 2 * [kept]))
    model = load(scaled, torch.float32, CPU, implementation, kv_cache_dtype="fp8_e5m2")
    assert cache_of(model).scales == 2 * [UNSCALED]
    assert any("kv_scale" in note and "left out" in note for note in model.notes)
    assert_near(served(model), expected(folder, E5M2, 2 * [UNSCALED]))


@pytest.mark.parametrize("wrong", [torch.tensor([0.1, 0.2]), 0.0, -1.0, float("nan")], ids=str)
def test_a_scale_that_is_no_positive_number_is_named(
    folder: Path, tmp_path: Path, wrong: float | torch.Tensor
) -> None:
    name = LAYER.format(0, "k_scale")
    scaled = with_scales(folder, tmp_path / "scaled", {name: wrong})
    with pytest.raises(BrokenCheckpoint, match=f"{name} is .* one positive number"):
        load(scaled, torch.float32, CPU, kv_cache_dtype="fp8_e4m3fn")


FLOAT = {"type": "float", "num_bits": 8, "strategy": "tensor", "dynamic": False}


def test_a_scheme_of_the_checkpoint_needs_no_flag() -> None:
    assert codes_of("", {"kv_cache_scheme": FLOAT}) == (E4M3, [])
    assert codes_of("fp8_e5m2", {"kv_cache_scheme": FLOAT}) == (E5M2, [])
    assert codes_of("", {"kv_cache_scheme": None}) == (None, [])
    assert codes_of("", None) == (None, [])


@pytest.mark.parametrize(
    "scheme", ["static", FLOAT | {"num_bits": 4}, FLOAT | {"type": "int"}, {"num_bits": 8}]
)
def test_a_scheme_that_is_not_followed_is_said(scheme: Any) -> None:
    codes, (note,) = codes_of("", {"kv_cache_scheme": scheme})
    assert codes is None
    assert "not followed" in note


def test_a_name_that_is_not_known_is_refused(folder: Path) -> None:
    with pytest.raises(UnsupportedModel, match="one of fp8_e4m3fn, fp8_e5m2, int8, not int4"):
        load(folder, torch.float32, CPU, kv_cache_dtype="int4")


@pytest.mark.parametrize("attention", [FlashAttention, VarlenAttention, ToyAttention])
def test_attention_that_reads_no_codes_is_refused(folder: Path, attention: Backend) -> None:
    with pytest.raises(UnsupportedModel, match="does not read a KV cache in int8"):
        load(folder, torch.float32, CPU, attention=attention, kv_cache_dtype="int8")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("name", CODES)
def test_a_block_takes_a_byte_for_each_number(folder: Path, name: str, dtype: torch.dtype) -> None:
    coded = load(folder, dtype, CPU, kv_cache_dtype=name).spec.cache_group
    row = 16 + (4 if name == "int8" else 0)
    assert coded.bytes_per_block(8) == 2 * 2 * 2 * 8 * row
    assert load(folder, dtype, CPU).spec.cache_group.bytes_per_block(8) == (
        2 * 2 * 2 * 8 * 16 * dtype.itemsize
    )
    pool = coded.pool(3, 8)
    assert pool.bytes == sum(one.nbytes for one in [*pool.keys, *pool.values, *pool.row_scales])
    assert coded.spec.stored == name


def test_scales_of_a_compressed_checkpoint_are_read(folder: Path, tmp_path: Path) -> None:
    """As llm-compressor writes it: the scheme in quantization_config, a scale for each layer."""
    named: dict[str, Any] = {
        LAYER.format(at, f"{kind}_scale"): 0.02 for at in range(2) for kind in "kv"
    }
    scaled = with_scales(folder, tmp_path / "scaled", named)
    config = json.loads((scaled / "config.json").read_text())
    tensors = load_file(scaled / SINGLE)
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        weight = tensors[name]
        scale = weight.abs().amax(1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    config["quantization_config"] = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head"],
        "kv_cache_scheme": FLOAT,
    }
    (scaled / "config.json").write_text(json.dumps(config))
    save_file(tensors, scaled / SINGLE, {"format": "pt"})
    model = load(scaled, torch.float32, CPU)
    assert cache_of(model).codes is E4M3
    assert cache_of(model).scales == 2 * [KvScales(*2 * [float(torch.tensor(0.02))])]
    assert not any("scale" in note for note in model.notes)
