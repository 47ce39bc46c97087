"""Quantized checkpoints as a server has them: over the wire, on one rank and on two, by flags."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.loading import load
from tests.integration.reference import Reference
from tests.integration.running_engine import finish_all, running_engine
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import quantized
from tests.workers.quantization.folders import SIZES, awq_folder, gptq_folder
from tests.workers.quantization.test_bitsandbytes import writer as bitsandbytes
from tests.workers.quantization.test_compressed_tensors import settings as of_schemes
from tests.workers.quantization.test_compressed_tensors import writer as compressed_tensors
from tests.workers.quantization.test_fp8 import SETTINGS as FP8
from tests.workers.quantization.test_fp8 import write as fp8
from tests.workers.quantization.test_gguf import folders as gguf
from tgi_async.generation import GenerationRequest
from tgi_async.wire.messages import Sampling
from workers.errors import UnsupportedModel
from workers.models.weight_files import SINGLE
from workers.quantization.registry import METHODS

SERVED = {"vocab_size": 49152, "max_position_embeddings": 512}
NF4 = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}

W4A16 = of_schemes({"Linear": "W4A16"})

Folders = tuple[Path, Path]
"""A quantized model, and the dense one that it stands for."""


def _of(write: Any, settings: dict[str, Any], kind: str) -> Callable[[Path], Folders]:
    def made(path: Path) -> Folders:
        dense = saved(path / "dense", kind, **SIZES, **SERVED)
        return quantized(dense, path / "quantized", write, settings), dense

    return made


MODELS: dict[str, Callable[[Path], Folders]] = {
    "compressed-tensors": _of(compressed_tensors("W4A16"), W4A16, "qwen2"),
    "awq": lambda path: awq_folder(path, "mixtral", "gemm", **SERVED),
    "gptq": lambda path: gptq_folder(path, "llama", (4, "gptq", False, 32, True), **SERVED),
    "fp8": _of(fp8("blocks"), FP8["blocks"], "qwen3_moe"),
    "bitsandbytes": _of(bitsandbytes("nf4-nested"), NF4, "phi3"),
    "gguf": lambda path: gguf(path, "smollm3", lambda name: "Q4_1", **SERVED),
}


def with_tokenizer(folder: Path, model_folder: Path) -> Path:
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(model_folder / name, folder)
    return folder


async def _check_texts(model_folder: Path, path: Path, method: str, n_ranks: int) -> None:
    folder, dense = MODELS[method](path)
    prompts = [[11, 12, 13], list(range(100, 140)), [5] * 17]
    requests = [GenerationRequest(one, Sampling(), max_new_tokens=24) for one in prompts]
    async with running_engine(
        with_tokenizer(folder, model_folder), n_blocks=40, model_impl="auto", world_size=n_ranks
    ) as engine:
        texts = await finish_all(engine, requests, within=0.1)
    reference = Reference(dense)
    for prompt, text in zip(prompts, texts, strict=True):
        assert len(text.tokens) == 24 or text.finish_reason == "stop_sequence"
        reference.compare(prompt, text.tokens)


@pytest.mark.model
async def test_texts_of_two_ranks_are_transformers(model_folder: Path, tmp_path: Path) -> None:
    await _check_texts(model_folder, tmp_path, "gptq", 2)


@pytest.mark.model
@pytest.mark.full
@pytest.mark.parametrize("n_ranks", [1, 2])
@pytest.mark.parametrize("method", MODELS)
async def test_texts_of_every_method(
    model_folder: Path, tmp_path: Path, method: str, n_ranks: int
) -> None:
    await _check_texts(model_folder, tmp_path, method, n_ranks)


def test_weights_take_no_more_than_a_tenth_more_than_the_file(tmp_path: Path) -> None:
    """Which has few tensors in 16 bits. Zero points take a byte instead of half a one."""
    sizes = {"hidden_size": 128, "intermediate_size": 256, "vocab_size": 32}
    made = [gptq_folder(tmp_path, "llama", (4, "gptq", False, 32, False), **sizes)[0]]
    written: list[tuple[Any, dict[str, Any]]] = [
        (fp8("blocks", (128, 128)), {"quant_method": "fp8", "weight_block_size": [128, 128]}),
        (bitsandbytes("nf4-nested"), NF4),
    ]
    for write, settings in written:
        path = tmp_path / settings["quant_method"]
        dense = saved(path / "dense", "llama", **{**SIZES, **sizes})
        made.append(quantized(dense, path / "quantized", write, settings))
    for folder in made:
        tensors = load_file(folder / SINGLE)
        stored = sum(one.nbytes for one in tensors.values())
        model = load(folder, torch.float32, CPU)
        assert 0.9 * stored < model.weight_bytes <= 1.1 * stored, folder


@pytest.fixture
def gptq_model(tmp_path: Path) -> Path:
    return gptq_folder(tmp_path, "llama", (4, "gptq", True, 32, False))[0]


@pytest.mark.parametrize("flag", ["", "gptq", "marlin"])
def test_a_flag_that_fits_confirms_what_the_checkpoint_says(gptq_model: Path, flag: str) -> None:
    model = load(gptq_model, torch.float32, CPU, quantize=flag)
    assert model.quantization == "gptq, 4 bits in groups of 32 inputs"


@pytest.mark.parametrize("flag", ["awq", "fp8", "bitsandbytes-nf4", "compressed-tensors"])
def test_a_flag_that_does_not_fit_is_refused(gptq_model: Path, flag: str) -> None:
    why = rf"--quantize {flag} does not fit .* in gptq, 4 bits .* Leave it out"
    with pytest.raises(UnsupportedModel, match=why):
        load(gptq_model, torch.float32, CPU, quantize=flag)


@pytest.mark.parametrize(
    ("flag", "why"),
    [
        ("gptq", "asks for weights that are quantized already, and those of this model are not"),
        ("compressed-tensors", "asks for weights that are quantized already"),
    ],
)
def test_a_flag_for_a_plain_checkpoint_is_refused(tmp_path: Path, flag: str, why: str) -> None:
    with pytest.raises(UnsupportedModel, match=f"--quantize {flag} {why}"):
        load(saved(tmp_path, "llama"), torch.float32, CPU, quantize=flag)


Place = Callable[[Path, dict[str, Any]], None]


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content))


def _without(config: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


PLACES: dict[str, Place] = {
    "no quant_method": lambda folder, given: _write(
        folder / "config.json",
        _config(folder) | {"quantization_config": _without(given, "quant_method")},
    ),
    "quantize_config.json": lambda folder, given: _write(
        folder / "quantize_config.json", _without(given, "quant_method", "checkpoint_format")
    ),
    "older spellings": lambda folder, given: _write(
        folder / "quantize_config.json", {"wbits": given["bits"], "q_group_size": 32}
    ),
}


def _config(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    config.pop("quantization_config", None)
    return config


@pytest.mark.parametrize("place", PLACES)
def test_older_places_and_spellings_of_settings(gptq_model: Path, place: str) -> None:
    given = json.loads((gptq_model / "config.json").read_text())["quantization_config"]
    _write(gptq_model / "config.json", _config(gptq_model))
    PLACES[place](gptq_model, given)
    assert (
        load(gptq_model, torch.float32, CPU).quantization == "gptq, 4 bits in groups of 32 inputs"
    )


def test_awqs_own_file(tmp_path: Path) -> None:
    folder, _ = awq_folder(tmp_path, "llama", "gemv")
    _write(folder / "config.json", _config(folder))
    settings = {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMV"}
    _write(folder / "quant_config.json", settings)
    model = load(folder, torch.float32, CPU)
    assert model.quantization == "awq (gemv), 4 bits in groups of 32 inputs"


def test_tensors_of_tgis_quantizer_are_right(gptq_model: Path) -> None:
    tensors = load_file(gptq_model / SINGLE)
    tensors |= {"gptq_bits": torch.tensor([4]), "gptq_groupsize": torch.tensor([32])}
    save_file(tensors, gptq_model / SINGLE, {"format": "pt"})
    config = _config(gptq_model)
    _write(gptq_model / "config.json", config)
    model = load(gptq_model, torch.float32, CPU)
    assert model.quantization == "gptq, 4 bits in groups of 32 inputs"
    _write(gptq_model / "config.json", config | {"quantization_config": {"bits": 8, "sym": True}})
    assert load(gptq_model, torch.float32, CPU).quantization == model.quantization


def test_a_method_that_is_not_here_is_named(gptq_model: Path) -> None:
    _write(
        gptq_model / "config.json",
        _config(gptq_model) | {"quantization_config": {"quant_method": "aqlm"}},
    )
    known = ", ".join(sorted(METHODS))
    with pytest.raises(UnsupportedModel, match=rf"quantized \(aqlm\), .* one quantized as {known}"):
        load(gptq_model, torch.float32, CPU)


def test_settings_that_are_no_json(gptq_model: Path) -> None:
    _write(gptq_model / "config.json", _config(gptq_model))
    (gptq_model / "quantize_config.json").write_text("{")
    with pytest.raises(UnsupportedModel, match=r"quantize_config\.json is not valid JSON"):
        load(gptq_model, torch.float32, CPU)


@pytest.mark.parametrize(
    "given",
    [
        {"quant_method": "gptq", "bits": 4, "group_size": None},
        {"quant_method": "fp8", "weight_block_size": 128},
        {"quant_method": "compressed-tensors", "config_groups": [{}]},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:(": {"bits": 8}}},
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": ["a"]},
    ],
    ids=str,
)
def test_settings_of_another_kind_than_expected(gptq_model: Path, given: dict[str, Any]) -> None:
    _write(gptq_model / "config.json", _config(gptq_model) | {"quantization_config": given})
    why = rf"quantization_config \({given['quant_method']}\) cannot be read: \w+: "
    with pytest.raises(UnsupportedModel, match=why):
        load(gptq_model, torch.float32, CPU)


def test_activations_in_int8_are_named_once(tmp_path: Path) -> None:
    folder = saved(tmp_path / "plain", "llama", **SIZES)
    found = load(folder, torch.bfloat16, CPU, quantize="int8", round_activations=True)
    assert found.quantization == "int8, 8 bits in rows, activations in int8 on a CPU"


def test_inputs_in_orders_that_the_config_does_not_tell_of(tmp_path: Path) -> None:
    folder, _ = gptq_folder(tmp_path, "llama", (4, "gptq", False, 32, True))
    path = folder / "config.json"
    _write(path, json.loads(path.read_text().replace('"desc_act": true', '"desc_act": false')))
    tensors = load_file(folder / SINGLE)
    q_proj = "model.layers.0.self_attn.q_proj.g_idx"
    assert not torch.equal(tensors[q_proj], tensors[q_proj].flip(0))
    save_file({**tensors, q_proj: tensors[q_proj].flip(0)}, folder / SINGLE)
    with pytest.raises(ValueError, match="orders: serve it with --model-impl transformers"):
        load(folder, torch.float32, CPU)
    assert load(folder, torch.float32, CPU, implementation="transformers").quantization
