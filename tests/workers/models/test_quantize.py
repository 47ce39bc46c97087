"""Checkpoints that are written quantized, as they are read here and by transformers."""

from __future__ import annotations

import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForCausalLM

from tests.families.cases import CASES, save
from tests.helpers.loading import pretrained
from tests.helpers.tiny_tokenizer import save_tiny_tokenizer
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.folders import SIZES, assert_stands_for
from workers.errors import UnsupportedModel
from workers.layers.linear import Linear
from workers.models.calibration import Calibration, sequences_of
from workers.models.checkpoint_writer import UNFINISHED, CheckpointWriter, WrongArguments
from workers.models.matching import expert_names
from workers.models.plain_model import PlainLayer, PlainModel
from workers.models.quantize import Method, choose, main, quantize
from workers.models.weight_files import INDEX, SINGLE
from workers.quantization.compressed_tensors import PACKED
from workers.quantization.grouped import GroupedWeight

RTN = Method("rtn", 0.01, False, "", 0)
N_TOKENS = 2048


def plain(tmp_path: Path, kind: str = "llama", **changed: Any) -> Path:
    """A model with a tokenizer, of weights in bfloat16."""
    tmp_path.mkdir(exist_ok=True)
    _, n = save_tiny_tokenizer(tmp_path)
    sizes = {**SIZES, "vocab_size": n, "max_position_embeddings": 512, **changed}
    folder = saved(tmp_path / "plain", kind, **sizes)
    shutil.copy(tmp_path / "tokenizer.json", folder)
    file = folder / SINGLE
    if file.is_file():
        halved = {name: one.bfloat16() for name, one in load_file(file).items()}
        save_file(halved, file, {"format": "pt"})
    return folder


def written(folder: Path, out: Path, *arguments: str) -> Path:
    assert main([str(folder), str(out), "--calibration-tokens", str(N_TOKENS), *arguments]) == 0
    return out


def rounded(folder: Path, out: Path, *arguments: str) -> Path:
    assert main([str(folder), str(out), "--method", "rtn", *arguments]) == 0
    return out


def dense_of(folder: Path) -> dict[str, torch.Tensor]:
    """What the quantized layers of a checkpoint stand for here, by their names."""
    model = pretrained(folder)
    model.fill(model.module, borrow=False)
    return {
        name: one.weight.dense(torch.float32)
        for name, one in model.module.named_modules()
        if isinstance(one, Linear) and isinstance(one.weight, GroupedWeight)
    }


def standing_for(folder: Path, dense: dict[str, torch.Tensor], made: Path) -> Path:
    """Write a plain model with the weights that quantized layers stand for."""
    shutil.copytree(folder, made)
    tensors = load_file(folder / SINGLE)
    assert {f"{name}.weight" for name in dense} <= tensors.keys()
    tensors |= {f"{name}.weight": one for name, one in dense.items()}
    save_file(tensors, made / SINGLE, {"format": "pt"})
    return made


def logits_of(folder: Path, ids: torch.Tensor) -> torch.Tensor:
    """By transformers, in float32."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model(ids).logits
    return logits


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("llama", ("--bits", "4")),
        ("qwen2", ("--bits", "8", "--group-size", "-1")),
        ("phi3", ("--format", "int-quantized")),
        ("gemma3_text", ("--format", "float-quantized")),
    ],
)
def test_transformers_reads_the_same(tmp_path: Path, kind: str, arguments: tuple[str, ...]) -> None:
    compressors: Any = pytest.importorskip(
        "compressed_tensors.compressors", reason="compressed-tensors is not installed"
    )
    from compressed_tensors.quantization import QuantizationScheme

    folder = plain(tmp_path, kind)
    out = rounded(folder, tmp_path / "out", *arguments)
    ours, tensors = dense_of(out), load_file(out / SINGLE)
    config = json.loads((out / "config.json").read_text())["quantization_config"]
    compressor = compressors.BaseCompressor.get_value_from_registry(config["format"])
    scheme = QuantizationScheme(**config["config_groups"]["group_0"])
    original = load_file(folder / SINGLE)
    assert len(ours) >= 8
    for name, dense in ours.items():
        own = {
            leaf: tensors[key]
            for leaf in ("weight", "weight_packed", "weight_scale", "weight_shape")
            if (key := f"{name}.{leaf}") in tensors
        }
        own["weight_scale"] = own["weight_scale"].float()
        assert torch.equal(compressor.decompress(own, scheme)["weight"], dense), name
        given = original[f"{name}.weight"].float()
        off = (dense - given).square().mean() / given.square().mean()
        assert 0 < off < (0.12 if "4" in arguments else 0.03) ** 2, name
    expected = standing_for(folder, ours, tmp_path / "dense")
    assert_stands_for(out, expected)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        logits = theirs(ids).logits  # makes its weights dense
    assert all(
        torch.equal(theirs.get_parameter(f"{name}.weight"), one) for name, one in ours.items()
    )
    if config["format"] == PACKED:  # else it rounds activations to eight bits
        assert (logits - logits_of(expected, ids)).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["mixtral", pytest.param("qwen3_moe", marks=pytest.mark.full)])
def test_experts_one_by_one(tmp_path: Path, kind: str) -> None:
    """And what routes to them stays plain."""
    folder = plain(tmp_path, kind)
    out = written(folder, tmp_path / "out", "--group-size", "32")
    names = load_file(out / SINGLE).keys()
    assert sum("experts." in name and name.endswith(".weight_packed") for name in names) == 30
    assert not [name for name in names if ".gate.weight_" in name]
    dense = dense_of(out)
    expected = load_file(folder / SINGLE)
    renamed = {}
    for name, one in dense.items():
        key = f"{name}.weight"
        if key not in expected:
            key = key.replace(".mlp.", ".block_sparse_moe.")
        renamed[key.removesuffix(".weight")] = one
    assert_stands_for(out, standing_for(folder, renamed, tmp_path / "dense"))


@pytest.mark.full
@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe"])
def test_transformers_reads_experts(tmp_path: Path, kind: str) -> None:
    """It makes them dense, in the dtype of their scales."""
    out = rounded(plain(tmp_path, kind), tmp_path / "out", "--group-size", "32")
    dense = dense_of(out)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    for at, layer in enumerate(theirs.model.layers):
        prefix = f"model.layers.{at}.mlp.experts"
        gate, up, down = (
            torch.stack([dense[f"{prefix}.{one}.{leaf}"].bfloat16() for one in range(5)])
            for leaf in expert_names(theirs)
        )
        assert torch.equal(layer.mlp.experts.gate_up_proj, torch.cat([gate, up], 1))
        assert torch.equal(layer.mlp.experts.down_proj, down)


def test_experts_in_one_tensor_stay_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plain(tmp_path, "gpt_oss", head_dim=32)
    out = written(folder, tmp_path / "out")
    assert "The experts of 2 layers lie in one tensor each" in capsys.readouterr().err
    before, after = load_file(folder / SINGLE), load_file(out / SINGLE)
    experts = [name for name in before if "experts" in name]
    assert experts
    assert all(torch.equal(before[name], after[name]) for name in experts)
    assert_stands_for(out, standing_for(folder, dense_of(out), tmp_path / "dense"))


@pytest.mark.parametrize(
    "name",
    [
        one if one in ("gemma3_text", "mixtral") else pytest.param(one, marks=pytest.mark.full)
        for one in CASES
    ],
)
def test_a_text_goes_through_layer_by_layer_as_through_the_model(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(CASES[name], tmp_path)
    ids = torch.randint(3, 60, (6, 40), generator=torch.Generator().manual_seed(0))
    seen: dict[str, torch.Tensor] = {}

    def keep(layer: PlainLayer, weight: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        seen[layer.name] = inputs
        return weight

    monkeypatch.setattr("workers.models.calibration.TOGETHER", 80)
    if CASES[name].kind in ("falcon", "gpt2"):
        with pytest.raises(UnsupportedModel, match="has no linear layers that can be quantized"):
            PlainModel(folder, CPU, False)
        return
    model = PlainModel(folder, CPU, False)
    found = Calibration(model, keep).run(ids)
    assert not [one for block in model.blocks.values() for one in block.parameters()]
    assert not [one for one in model.layers if hasattr(one.layer, "weight")]
    theirs = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager"
    )
    got: dict[str, torch.Tensor] = {}

    def gather(own: str, module: nn.Module, args: tuple[torch.Tensor]) -> None:
        x = args[0].flatten(0, -2)
        got[own] = x.t() @ x + got.get(own, 0.0)

    for own, one in theirs.named_modules():
        if own in seen:
            one.register_forward_pre_hook(partial(gather, own))
    # The base model of Llama 4 is another one.
    inner = theirs.model if theirs.base_model is theirs else theirs.base_model
    with torch.no_grad():
        expected = inner(ids, use_cache=False)[0]
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert got
    for own, product in got.items():
        torch.testing.assert_close(
            seen[own], product, atol=1e-4 * float(product.abs().max()), rtol=1e-3
        )


@pytest.mark.parametrize(
    ("form", "order"),
    [
        (("--group-size", "-1"), "--no-act-order"),
        (("--group-size", "32"), "--act-order"),
        (("--format", "int-quantized"), "--act-order"),
        pytest.param(("--format", "float-quantized"), "--act-order", marks=pytest.mark.full),
        pytest.param(("--group-size", "32"), "--no-act-order", marks=pytest.mark.full),
    ],
)
def test_gptq_changes_what_a_model_makes_of_its_text_less(
    tmp_path: Path, form: tuple[str, ...], order: str
) -> None:
    folder = plain(tmp_path)
    text = tmp_path / "text"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 400)
    nearest = rounded(folder, tmp_path / "rtn", *form)
    gptq = written(folder, tmp_path / "gptq", order, *form, "--calibration", str(text))
    config = json.loads((gptq / "config.json").read_text())["quantization_config"]
    weights = config["config_groups"]["group_0"]["weights"]
    assert weights.get("actorder") == (None if order.startswith("--no") else "static")
    ids = sequences_of(folder, text.read_text(), 2, 512, None)
    models = [
        standing_for(folder, dense_of(one), tmp_path / f"dense-{one.name}")
        for one in (nearest, gptq)
    ]
    exact = logits_of(folder, ids)
    errors = [float((logits_of(one, ids) - exact).square().mean()) for one in models]
    assert 0 < errors[1] < 0.8 * errors[0]


def test_several_files_and_all_others(tmp_path: Path) -> None:
    whole = plain(tmp_path)
    folder = tmp_path / "parts"
    model = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="60KB")
    for name, content in {
        "tokenizer.json": (whole / "tokenizer.json").read_text(),
        "chat_template.jinja": "{{ messages }}",
        "LICENSE": "as you like",
        "README.md": "# A model",
        "quant_config.json": "",
        "notes.bin": "x",
    }.items():
        (folder / name).write_text(content)
    (folder / "quant_config.json").unlink()
    out = rounded(folder, tmp_path / "out")
    shards = sorted(one.name for one in folder.glob("*.safetensors"))
    assert len(shards) > 2
    assert sorted(one.name for one in out.iterdir()) == sorted(
        [*shards, INDEX, "config.json", "generation_config.json", "tokenizer.json",
         "chat_template.jinja", "LICENSE"]
    )  # fmt: skip
    index = json.loads((out / INDEX).read_text())
    for name in shards:
        held = load_file(out / name)
        assert held.keys() == {key for key, file in index["weight_map"].items() if file == name}
    alone = rounded(whole, tmp_path / "alone")
    one, other = dense_of(out), dense_of(alone)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--method", "magic"), "--method must be gptq or rtn. Given: 'magic'"),
        (
            ("--group-size", "128"),
            "--group-size 128 does not divide the 64 inputs of model.layers.0.self_attn.q_proj: "
            "give one that divides those of all layers (64, 192), such as 64, 32, or -1",
        ),
        (("--group-size", "0"), "--group-size must be -1 or at least 1. Given: 0."),
        (("--format", "int-quantized", "--bits", "4"), "has 8 bits and a scale for each row"),
        (("--method", "rtn", "--act-order"), "--act-order is for --method gptq"),
        (("--percdamp", "3"), "--percdamp must be from 0 to 1"),
        (("--upload-to-model-id", "a/b"), "--upload-to-model-id is not built"),
        (("--calibration", "/no/such/text"), "/no/such/text"),
        (("--revision", "main"), "which has no revisions"),
    ],
)
def test_what_cannot_be_done_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    folder = plain(tmp_path)
    out = tmp_path / "out"
    assert main([str(folder), str(out), *arguments]) == 1
    reported = capsys.readouterr().err
    assert message in reported
    assert "Traceback" not in reported
    assert not out.exists() or list(out.iterdir()) == []


def test_a_text_that_is_too_short_is_refused(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    with pytest.raises(UnsupportedModel, match="has 4 tokens; at least 512 are needed"):
        sequences_of(folder, "{}{}", 4, 512, None)


def test_an_empty_text_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Rather than the one of Python taken in its place."""
    text = tmp_path / "text"
    text.write_text("\n")
    assert main([str(plain(tmp_path)), str(tmp_path / "out"), "--calibration", str(text)]) == 1
    assert f"--calibration {text} is empty" in capsys.readouterr().err


@pytest.mark.parametrize("method", ["gptq", "rtn"])
def test_weights_that_are_no_numbers_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str
) -> None:
    folder = plain(tmp_path)
    tensors = load_file(folder / SINGLE)
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = torch.inf
    save_file(tensors, folder / SINGLE, {"format": "pt"})
    assert main([str(folder), str(tmp_path / "out"), "--method", method]) == 1
    assert f"{name} has numbers that are infinite or NaN" in capsys.readouterr().err


def test_what_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = plain(tmp_path)
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")
    assert main([str(folder), str(out)]) == 1
    assert f"{out} is not empty" in capsys.readouterr().err
    assert main([str(folder), str(out / "mine")]) == 1
    assert "mine is a file" in capsys.readouterr().err
    assert [one.name for one in out.iterdir()] == ["mine"]


def test_a_model_that_is_quantized_already_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = rounded(plain(tmp_path), tmp_path / "out")
    assert main([str(out), str(tmp_path / "again"), "--method", "rtn"]) == 1
    assert "it is quantized already (compressed-tensors)" in capsys.readouterr().err


def test_a_model_without_linear_layers_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = plain(tmp_path, "gpt2", n_embd=64, n_head=2, n_layer=1)
    assert main([str(folder), str(tmp_path / "out")]) == 1
    assert "gpt2 has no linear layers that can be quantized" in capsys.readouterr().err


def test_a_run_that_is_interrupted_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = plain(tmp_path)
    out = tmp_path / "out"

    def stop(self: CheckpointWriter) -> None:
        assert [one.name for one in out.iterdir()] == [UNFINISHED]
        assert (out / UNFINISHED / SINGLE).is_file()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "_copy_others", stop)
        assert main([str(folder), str(out), "--method", "rtn"]) == 130
    assert list(out.iterdir()) == []
    # One that was killed had no time to clean up.
    (out / UNFINISHED).mkdir()
    (out / UNFINISHED / SINGLE).write_text("half")
    rounded(folder, out)
    assert not (out / UNFINISHED).exists()
    assert dense_of(out)


def test_a_disk_that_is_full_is_one_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: CheckpointWriter) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(CheckpointWriter, "_copy_others", full)
    out = tmp_path / "out"
    assert main([str(plain(tmp_path)), str(out), "--method", "rtn"]) == 1
    assert "Error: [Errno 28] No space left on device" in capsys.readouterr().err
    assert list(out.iterdir()) == []


def test_a_group_is_chosen_that_divides_all_layers(tmp_path: Path) -> None:
    model = PlainModel(plain(tmp_path), CPU, False)
    assert choose(PACKED, 4, None, model).group == 64
    assert choose(PACKED, 4, -1, model).group == 0
    odd = PlainModel(plain(tmp_path / "odd", intermediate_size=72), CPU, False)
    with pytest.raises(
        WrongArguments, match=r"no groups of 128, 64, 32 inputs divide .*\(64, 72\)"
    ):
        choose(PACKED, 4, None, odd)
    quantize(
        tmp_path / "odd" / "plain", tmp_path / "out", RTN, lambda one: choose(PACKED, 4, 8, one)
    )
    assert dense_of(tmp_path / "out")
