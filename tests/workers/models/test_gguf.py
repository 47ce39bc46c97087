from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType

from tests.helpers.tiny_gguf import BLOCKS, HIDDEN, TOKENS, Array, write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models.gguf import GgufModel, unpermute
from workers.models.gguf_architectures import QUANTIZATIONS


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_tensors_come_out_as_they_went_in(tmp_path: Path, quantization: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", quantization=GGMLQuantizationType[quantization])
    model = GgufModel(tiny.path)

    read = dict(model.tensors())

    assert list(read) == list(model.shapes)
    assert read.keys() == tiny.tensors.keys()
    for name, values in tiny.tensors.items():
        assert model.shapes[name] == values.shape
        assert read[name].dtype == np.float32
        np.testing.assert_array_equal(read[name], values, err_msg=name)


def test_unpermuting_turns_llama_cpp_rotation_into_that_of_transformers() -> None:
    heads, head_dim = 2, 8
    rows = np.random.default_rng(1).standard_normal((heads * head_dim, 1)).astype(np.float32)
    angles = np.linspace(0.1, 1.2, head_dim // 2, dtype=np.float32)

    stored = rows.reshape(heads, head_dim // 2, 2)
    neighbours = np.stack(_rotate(stored[..., 0], stored[..., 1], angles), axis=-1)
    halves = unpermute(rows, heads).reshape(heads, 2, head_dim // 2)
    rotated = np.stack(_rotate(halves[:, 0], halves[:, 1], angles), axis=1)

    expected = unpermute(neighbours.reshape(-1, 1), heads).reshape(rotated.shape)
    np.testing.assert_allclose(rotated, expected, rtol=1e-5, atol=1e-6)
    assert not np.array_equal(unpermute(rows, heads), rows)


def _rotate(x: Array, y: Array, angles: Array) -> tuple[Array, Array]:
    return x * np.cos(angles) - y * np.sin(angles), x * np.sin(angles) + y * np.cos(angles)


def test_the_config_says_what_the_metadata_says(tmp_path: Path) -> None:
    config = GgufModel(write_tiny_gguf(tmp_path / "a.gguf").path).config()

    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["hidden_size"] == HIDDEN
    assert config["num_hidden_layers"] == BLOCKS
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (4, 2)
    assert config["rope_parameters"] == {"rope_theta": 50000.0, "rope_type": "default"}
    assert config["rms_norm_eps"] == 1e-5
    assert config["vocab_size"] == len(TOKENS)
    assert (config["bos_token_id"], config["eos_token_id"]) == (1, 2)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_are_tied_where_the_file_has_no_output_matrix(
    tmp_path: Path, tied: bool
) -> None:
    model = GgufModel(write_tiny_gguf(tmp_path / "a.gguf", tied=tied).path)

    assert model.config()["tie_word_embeddings"] is tied
    assert ("lm_head.weight" in model.shapes) is not tied


def test_another_architecture_is_refused_by_name(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", architecture="falcon")

    with pytest.raises(ModelUnavailable, match="architecture is 'falcon', and read are llama"):
        GgufModel(tiny.path)


def test_another_quantization_is_refused_by_name(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", quantization=GGMLQuantizationType.NVFP4)

    with pytest.raises(ModelUnavailable, match=r"quantized as NVFP4; read are F32"):
        GgufModel(tiny.path)


@pytest.mark.parametrize("name", ["blk.0.ffn_gate_inp.weight", "blk.0.attn_q_norm.weight"])
def test_a_tensor_that_a_plain_llama_has_not_is_refused_by_name(tmp_path: Path, name: str) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", extra_tensor=name)

    with pytest.raises(ModelUnavailable, match=f"has a tensor {name}"):
        GgufModel(tiny.path)


def test_rotary_factors_of_no_known_kind_are_refused(tmp_path: Path) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", extra_tensor="rope_freqs.weight")

    with pytest.raises(ModelUnavailable, match=r"rope_freqs are not those of Llama 3\.1"):
        GgufModel(tiny.path).config()


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("llama.expert_count", "a mixture of experts"),
        ("llama.attention.sliding_window", "a sliding window"),
        ("llama.logit_scale", "scaled logits"),
        ("split.count", "one part of a split file"),
    ],
)
def test_what_changes_the_arithmetic_and_is_not_read_is_refused(
    tmp_path: Path, key: str, message: str
) -> None:
    tiny = write_tiny_gguf(tmp_path / "a.gguf", extra_uint32=key)

    with pytest.raises(ModelUnavailable, match=message):
        GgufModel(tiny.path)


@pytest.mark.parametrize("content", [b"", b"not a GGUF file at all, but long enough to look"])
def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.gguf").write_bytes(content)

    with pytest.raises(ModelUnavailable, match="cannot be read as a GGUF file"):
        GgufModel(tmp_path / "a.gguf")
