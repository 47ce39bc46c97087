"""compressed-tensors, against the package that writes such checkpoints."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.loading import load
from tests.workers.models.test_rank_logits import MOST_DIFFERENCE, furthest, run
from tests.workers.models.test_sharding import part
from tests.workers.models.test_weights import CPU, saved
from tests.workers.quantization.checkpoints import (
    Write,
    assert_ranks_have_the_whole,
    quantized,
    weight_of,
)
from tests.workers.quantization.folders import SIZES, assert_stands_for, matrix
from workers.errors import UnsupportedModel
from workers.kernels.codes import KINDS, PackedCodes
from workers.layers.experts import SeparateExperts
from workers.models.checkpoint import BrokenCheckpoint
from workers.models.weight_files import SINGLE
from workers.quantization.compressed_tensors import CompressedTensorsMethod
from workers.quantization.grouped import GroupedWeight
from workers.quantization.method import Cut, Size
from workers.slices import Range

compressors: Any = pytest.importorskip(
    "compressed_tensors.compressors", reason="the package compressed-tensors is not installed"
)
quantization: Any = pytest.importorskip("compressed_tensors.quantization")

PACKED = "pack-quantized"
GROUP = {"strategy": "group", "group_size": 32}
BLOCK = {"strategy": "block", "block_structure": [48, 32]}
CHANNEL, TENSOR = {"strategy": "channel"}, {"strategy": "tensor"}
ASYMMETRIC = {"symmetric": False}
FLOAT = {"type": "float"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "W4A16": (PACKED, {"num_bits": 4, **GROUP}),
    "W4A16_ASYM": (PACKED, {"num_bits": 4, **GROUP, **ASYMMETRIC}),
    "W8A16": (PACKED, {"num_bits": 8, **CHANNEL}),
    "W8A16_ASYM": (PACKED, {"num_bits": 8, **CHANNEL, **ASYMMETRIC}),
    "W3A16_ASYM": (PACKED, {"num_bits": 3, **GROUP, **ASYMMETRIC}),
    "W2A16": (PACKED, {"num_bits": 2, **GROUP}),
    "W6A16": (PACKED, {"num_bits": 6, **CHANNEL}),
    "W8A8": ("int-quantized", {"num_bits": 8, **CHANNEL}),
    "W8A8_TENSOR": ("int-quantized", {"num_bits": 8, **TENSOR}),
    "W8A8_ASYM": ("int-quantized", {"num_bits": 8, **CHANNEL, **ASYMMETRIC}),
    "FP8": ("float-quantized", {"num_bits": 8, **FLOAT, **TENSOR}),
    "FP8_DYNAMIC": ("float-quantized", {"num_bits": 8, **FLOAT, **CHANNEL}),
    "FP8_BLOCK": ("float-quantized", {"num_bits": 8, **FLOAT, **BLOCK}),
    "NAIVE": ("naive-quantized", {"num_bits": 8, **GROUP, **ASYMMETRIC}),
}


def settings(schemes: dict[str, str], **more: Any) -> dict[str, Any]:
    """`quantization_config`, of the name of a scheme for each target."""
    groups = {
        f"group_{at}": {
            "targets": [target],
            "weights": {"type": "int", "symmetric": True, **SCHEMES[name][1]},
            "input_activations": None,
            "format": SCHEMES[name][0],
        }
        for at, (target, name) in enumerate(schemes.items())
    }
    stored = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "format": stored.pop() if len(stored) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head"],
        **more,
    }


def writer(name: str) -> Write:
    """The package's own compressor; what it decompresses is what the tensors stand for."""
    stored, weights = SCHEMES[name]
    arguments = quantization.QuantizationArgs(**weights)
    scheme = quantization.QuantizationScheme(targets=["Linear"], weights=arguments, format=stored)
    compressor = compressors.BaseCompressor.get_value_from_registry(stored)

    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        n, k = weight.shape
        tiles: dict[str, Any] = {
            "group": (1, weights.get("group_size")),
            "channel": (1, k),
            "tensor": (n, k),
            "block": weights.get("block_structure"),
        }
        rows, columns = tiles[weights["strategy"]]
        low = torch.zeros(-(-n // rows), -(-k // columns))
        high = low.clone()
        for row in range(low.shape[0]):
            for column in range(low.shape[1]):
                part = weight[row * rows :, column * columns :][:rows, :columns]
                low[row, column], high[row, column] = part.min(), part.max()
        scale, zero = quantization.utils.calculate_qparams(
            low.clamp(max=0.0), high.clamp(min=0.0), arguments
        )
        if weights["strategy"] == "tensor":
            scale, zero = scale.reshape(1), zero.reshape(1)
        given = {"weight": weight, "weight_scale": scale.float(), "weight_zero_point": zero}
        packed = compressor.compress(given, scheme)
        dense = compressor.decompress(packed, scheme)["weight"]
        return {leaf: one for leaf, one in packed.items() if one is not None}, dense.float()

    return write


@pytest.mark.parametrize("name", SCHEMES)
def test_what_the_package_writes_is_read_bit_for_bit(name: str) -> None:
    tensors, dense = writer(name)(matrix(96, 192))
    method, size = CompressedTensorsMethod.of(settings({"Linear": name})), Size(96, 192)
    for leaf, slot in method.slots(size, torch.float32).items():
        if leaf in tensors:
            assert tuple(tensors[leaf].shape) in (slot.shape, *slot.others), leaf
            assert not slot.stored or tensors[leaf].dtype in slot.stored, leaf
        else:
            assert slot.optional, leaf
    found = weight_of(method, tensors, size)
    assert isinstance(found, GroupedWeight)
    assert torch.equal(found.dense(torch.float32), dense)
    assert (found.groups.zeros is not None) == ("ASYM" in name or name == "NAIVE")
    x = matrix(3, 192)
    torch.testing.assert_close(found.apply(x), x @ dense.t(), atol=1e-4, rtol=1e-5)
    cuts = [Cut(outputs=[Range(0, 40)]), Cut(outputs=[Range(8, 16), Range(64, 96)])]
    cuts += [Cut(inputs=[Range(64, 128)]), Cut(inputs=[Range(96, 192)])]
    assert_ranks_have_the_whole(method, tensors, size, cuts)


def test_an_older_file_with_the_group_of_each_input() -> None:
    """Whose writer put inputs in the order of their activations, and zero points in int8."""
    order = torch.randperm(192, generator=torch.Generator().manual_seed(0))
    weight = matrix(96, 192)
    tensors, dense = writer("W4A16_ASYM")(weight[:, order])
    back = order.argsort()
    unpack: Any = compressors.pack_quantized.unpack_from_int32
    pack: Any = compressors.pack_quantized.pack_to_int32
    codes = unpack(tensors["weight_packed"], 4, torch.Size((96, 192)))
    tensors["weight_packed"] = pack(codes[:, back].contiguous(), 4)
    tensors["weight_zero_point"] = unpack(
        tensors["weight_zero_point"], 4, torch.Size((96, 6)), packed_dim=0
    )
    tensors["weight_g_idx"] = (torch.arange(192) // 32)[back].int()
    method, size = CompressedTensorsMethod.of(settings({"Linear": "W4A16_ASYM"})), Size(96, 192)
    found = weight_of(method, tensors, size)
    assert isinstance(found, GroupedWeight)
    assert found.order is not None
    assert torch.equal(found.dense(torch.float32), dense[:, back])
    assert_ranks_have_the_whole(method, tensors, size, [Cut(inputs=[Range(64, 128)])])


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("qwen2", "W8A8"),
        ("phi3", "FP8_DYNAMIC"),
        ("qwen3_moe", "W4A16_ASYM"),
        pytest.param("gemma2", "W4A16_ASYM", marks=pytest.mark.full),
        pytest.param("mixtral", "FP8_BLOCK", marks=pytest.mark.full),
    ],
)
def test_logits(tmp_path: Path, family: str, name: str) -> None:
    _check(tmp_path, family, name)


@pytest.mark.full
@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "phi3", "mixtral", "gemma3_text"])
def test_logits_of_every_scheme(tmp_path: Path, family: str, name: str) -> None:
    _check(tmp_path, family, name)


def _check(tmp_path: Path, family: str, name: str) -> None:
    dense = saved(tmp_path / "dense", family, **SIZES)
    folder = quantized(dense, tmp_path / "ct", writer(name), settings({"Linear": name}))
    model = assert_stands_for(folder, dense)
    assert model.quantization.startswith(f"compressed-tensors ({SCHEMES[name][0]}, ")


def experts_one_by_one(tmp_path: Path) -> tuple[Path, Path]:
    """gpt-oss with layers for each expert, which have biases, and gate and up apart; and the dense
    one that it stands for, whose experts lie in one tensor."""
    dense = saved(
        tmp_path / "dense", "gpt_oss", **{**SIZES, "intermediate_size": 96, "head_dim": 32}
    )
    write, folder = writer("W4A16"), tmp_path / "ct"
    meant = load_file(dense / SINGLE)
    packed = dict(meant)
    prefixes = {name[: name.index("experts.") + 8] for name in meant if "experts." in name}
    for prefix in prefixes:
        biases = {name: packed.pop(f"{prefix}{name}_proj_bias") for name in ("gate_up", "down")}
        weights = {name: packed.pop(f"{prefix}{name}_proj") for name in ("gate_up", "down")}
        for at in range(5):
            for name, whole, rows in (
                ("gate", "gate_up", slice(0, None, 2)),
                ("up", "gate_up", slice(1, None, 2)),
                ("down", "down", slice(None)),
            ):
                made, stands = write(weights[whole][at].t()[rows].contiguous())
                meant[f"{prefix}{whole}_proj"][at].t()[rows] = stands
                own = made | {"bias": biases[whole][at][rows]}
                packed |= {
                    f"{prefix}{at}.{name}_proj.{leaf}": one.clone() for leaf, one in own.items()
                }
    shutil.copytree(dense, folder)
    save_file(packed, folder / SINGLE, {"format": "pt"})
    save_file(meant, dense / SINGLE, {"format": "pt"})
    config = json.loads((dense / "config.json").read_text())
    config["quantization_config"] = settings({"Linear": "W4A16"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder, dense


def test_experts_with_biases_one_by_one(tmp_path: Path) -> None:
    folder, dense = experts_one_by_one(tmp_path)
    model = assert_stands_for(folder, dense, fused=False)
    experts = [one for one in model.module.modules() if isinstance(one, SeparateExperts)]
    assert len(experts) == 2
    loaded = part(folder, 1, 2)
    layer = loaded.module.model.layers[1].mlp.experts.get_submodule("4")
    assert ["bias" in one.wanted for one in layer.children()] == [True, True, False]


@pytest.mark.full
def test_experts_with_biases_on_two_ranks(tmp_path: Path) -> None:
    models = [("transformers", experts_one_by_one(tmp_path)[0])]
    assert max(furthest(models, run(models, 2, tmp_path))) < MOST_DIFFERENCE


def test_layers_of_several_groups(tmp_path: Path) -> None:
    """A name counts more than an expression, and that more than a class; under the older key."""
    dense = saved(tmp_path / "dense", "llama", **SIZES)
    first = "model.layers.0.mlp.down_proj"
    schemes = {"Linear": "W4A16", r"re:.*down_proj": "W8A16", first: "FP8_DYNAMIC"}

    def chosen(name: str) -> Write:
        return writer("FP8_DYNAMIC" if name == first else "W8A16" if "down" in name else "W4A16")

    folder = quantized(
        dense, tmp_path / "ct", chosen, settings(schemes), by_name=True, key="compression_config"
    )
    model = assert_stands_for(folder, dense)
    down = [layer.mlp.down_proj.weight.struct for layer in model.module.model.layers]
    assert [(one.bits, one.kind) for one in down] == [(8, KINDS["e4m3"]), (8, KINDS["integer"])]


def test_a_head_that_is_not_ignored(tmp_path: Path) -> None:
    dense = saved(tmp_path / "dense", "llama", vocab_size=96, tie_word_embeddings=False, **SIZES)
    linear = re.compile(r"(.*_proj|lm_head)\.weight")
    folder = quantized(
        dense, tmp_path / "ct", writer("W4A16"), settings({"Linear": "W4A16"}), linear=linear
    )
    model = assert_stands_for(folder, dense)
    assert isinstance(model.module.lm_head.weight, PackedCodes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "nvfp4-pack-quantized"}, "format nvfp4-pack-quantized, with scales of a group"),
        ({"format": "float-quantized", "num_bits": 4, "type": "float"}, "float of 4 bits"),
    ],
)
def test_schemes_that_are_not_served(change: dict[str, Any], message: str) -> None:
    given = settings({"Linear": "W4A16"})
    group = given["config_groups"]["group_0"]
    group["format"] = change.pop("format")
    group["weights"] |= change
    with pytest.raises(UnsupportedModel, match=message):
        CompressedTensorsMethod.of(given)
    with pytest.raises(UnsupportedModel, match=r"sparse \(24\)"):
        CompressedTensorsMethod.of({**given, "sparsity_config": {"format": "24"}})


def test_transforms_that_are_not_in_the_weights_are_refused() -> None:
    """Those of the package: a rotation of activations is computed while the model runs."""
    transform: Any = pytest.importorskip("compressed_tensors.transform")

    def given(*locations: str) -> dict[str, Any]:
        apply = [transform.TransformArgs(targets=["Linear"], location=one) for one in locations]
        scheme = transform.TransformScheme(type="hadamard", apply=apply)
        config = transform.TransformConfig(config_groups={"R4": scheme})
        return settings({"Linear": "W4A16"}, transform_config=config.model_dump())

    CompressedTensorsMethod.of(given("weight_input", "weight_output"))
    with pytest.raises(UnsupportedModel, match="transform_config has input, q_attn multiplied"):
        CompressedTensorsMethod.of(given("weight_input", "input", "q_attn"))


def test_a_weight_of_another_shape_than_it_says(tmp_path: Path) -> None:
    def write(weight: torch.Tensor) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        tensors, dense = writer("W4A16")(weight)
        return tensors | {"weight_shape": torch.tensor([8, 8])}, dense

    dense = saved(tmp_path / "dense", "llama", **SIZES)
    folder = quantized(dense, tmp_path / "ct", write, settings({"Linear": "W4A16"}))
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
    with pytest.raises(BrokenCheckpoint, match=r"layers\.0.*: its weight_shape is \[8, 8\], and"):
        load(folder, torch.float32, CPU)
