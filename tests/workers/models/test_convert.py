from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.helpers.model_files import INDEX, model_files, pickled, write_files
from tests.helpers.tiny_tokenizer import tiny_marks
from tests.layouts.tokenizers import sentencepiece_model
from workers.errors import ModelUnavailable
from workers.models.convert import _save, complete
from workers.models.folder import examine, local_folder


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))


def completed(path: Path) -> Path:
    folder = local_folder(str(path))
    return complete(folder, examine(folder), trust_remote_code=False)


def with_weights(tmp_path: Path, **weights: bytes) -> Path:
    files = model_files()
    del files["model.safetensors"]
    named = {name.replace("_of_", "-of-") + ".bin": value for name, value in weights.items()}
    return write_files(tmp_path / "m", files | named)


def test_pickled_weights_become_safetensors_of_the_same_values(tmp_path: Path) -> None:
    tied = torch.randn(4, 3, dtype=torch.bfloat16)
    tensors = {"a": tied, "b": tied, "c": torch.randn(3, 4).t(), "d": torch.arange(3)}
    source = with_weights(tmp_path, pytorch_model=pickled(tensors))

    weights = load_file(completed(source) / "model.safetensors")

    assert weights.keys() == tensors.keys()
    for name, values in tensors.items():
        assert weights[name].dtype == values.dtype
        assert torch.equal(weights[name], values)


def test_weights_for_which_there_is_no_room_are_an_error_of_writing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="I/O error"):
        _save({"a": torch.zeros(1)}, tmp_path / "gone" / "model.safetensors")


def test_shards_become_shards_with_an_index(tmp_path: Path) -> None:
    source = write_files(
        tmp_path / "m",
        {
            "config.json": b"{}",
            "tokenizer.json": b"{}",
            "pytorch_model-00001-of-00002.bin": pickled({"a": torch.ones(2)}),
            "pytorch_model-00002-of-00002.bin": pickled({"b": torch.zeros(2)}),
        },
    )

    made = completed(source)

    assert json.loads((made / INDEX).read_text())["weight_map"] == {
        "a": "model-00001-of-00002.safetensors",
        "b": "model-00002-of-00002.safetensors",
    }
    assert not examine(local_folder(str(made))).safetensors


def test_the_original_is_linked_and_not_written_to(tmp_path: Path) -> None:
    source = with_weights(tmp_path, pytorch_model=pickled({"a": torch.ones(2)}))
    before = sorted(entry.name for entry in source.iterdir())

    made = completed(source)

    assert sorted(entry.name for entry in source.iterdir()) == before
    assert (made / "config.json").resolve() == (source / "config.json").resolve()
    assert not (made / "pytorch_model.bin").exists()


def test_a_changed_original_is_converted_anew(tmp_path: Path) -> None:
    source = with_weights(tmp_path, pytorch_model=pickled({"a": torch.ones(2)}))
    first = completed(source)
    assert completed(source) == first

    (source / "pytorch_model.bin").write_bytes(pickled({"a": torch.ones(5)}))

    assert load_file(completed(source) / "model.safetensors")["a"].shape == (5,)


class _Attack:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.target,)


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path) -> None:
    attack = pickle.dumps(_Attack(tmp_path / "ran"))
    source = with_weights(tmp_path, pytorch_model=attack)

    with pytest.raises(ModelUnavailable, match=r"pytorch_model\.bin cannot be read as weights"):
        completed(source)

    assert not (tmp_path / "ran").exists()


def test_an_older_tokenizer_becomes_tokenizer_json(tmp_path: Path) -> None:
    files = model_files() | {
        "config.json": b'{"model_type": "gpt2"}',
        "vocab.json": b'{"h": 0, "e": 1, "he": 2, "<|endoftext|>": 3}',
        "merges.txt": b"#version: 0.2\nh e\n",
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer"}',
    }
    del files["tokenizer.json"]

    made = completed(write_files(tmp_path / "m", files))

    tokenizer = Tokenizer.from_file(str(made / "tokenizer.json"))
    assert tokenizer.encode("hehe").ids == [2, 2]


def test_the_special_tokens_of_an_older_tokenizer_are_named(tmp_path: Path) -> None:
    """By its class alone, which has them by default."""
    files = model_files() | {
        "config.json": b'{"model_type": "gpt2"}',
        "vocab.json": b'{"h": 0, "<|endoftext|>": 1}',
        "merges.txt": b"#version: 0.2\n",
        "tokenizer_config.json": b'{"tokenizer_class": "GPT2Tokenizer", "chat_template": "x"}',
    }
    del files["tokenizer.json"]

    made = completed(write_files(tmp_path / "m", files))

    config = json.loads((made / "tokenizer_config.json").read_text())
    assert (config["eos_token"], config["chat_template"]) == ("<|endoftext|>", "x")
    original = json.loads((tmp_path / "m" / "tokenizer_config.json").read_text())
    assert "eos_token" not in original


def with_tokenizer(tmp_path: Path, config: bytes, tokenizer_config: bytes) -> Path:
    tokenizer = tiny_marks()
    return write_files(
        tmp_path / "m",
        model_files()
        | {
            "config.json": config,
            "tokenizer.json": tokenizer.to_str().encode(),
            "tokenizer_config.json": tokenizer_config,
        },
    )


def test_a_special_token_that_another_file_names_is_one(tmp_path: Path) -> None:
    source = with_tokenizer(tmp_path, b"{}", b'{"eos_token": "<x>"}')

    tokenizer = Tokenizer.from_file(str(completed(source) / "tokenizer.json"))

    [id] = tokenizer.encode("<x>").ids
    assert tokenizer.get_added_tokens_decoder()[id].special
    assert tokenizer.decode([id]) == ""


def test_a_special_token_beyond_the_model_stays_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = tiny_marks().get_vocab_size()
    config = json.dumps({"model_type": "llama", "vocab_size": size}).encode()
    source = with_tokenizer(tmp_path, config, b'{"eos_token": "<x>"}')

    tokenizer = Tokenizer.from_file(str(completed(source) / "tokenizer.json"))

    assert max(tokenizer.encode("<x>").ids) < size
    assert "'<x>' is no token of the model, and stays text" in capsys.readouterr().err


def test_byte_order_marks_are_left_out(tmp_path: Path) -> None:
    mark = b"\xef\xbb\xbf"
    files = model_files() | {"config.json": mark + b'{"model_type": "llama"}'}

    made = completed(write_files(tmp_path / "m", files))

    assert (made / "config.json").read_bytes() == b'{"model_type": "llama"}'
    assert (tmp_path / "m" / "config.json").read_bytes().startswith(mark)


def test_a_link_that_leads_nowhere_is_left_out(tmp_path: Path) -> None:
    source = with_weights(tmp_path, pytorch_model=pickled({"a": torch.ones(2)}))
    (source / "optimizer.pt").symlink_to(tmp_path / "lost")

    assert not (completed(source) / "optimizer.pt").is_symlink()


def test_a_tokenizer_in_python_only_is_refused(tmp_path: Path) -> None:
    files = model_files() | {
        "config.json": b'{"model_type": "ctrl"}',
        "vocab.json": b'{"a": 0}',
        "merges.txt": b"#version: 0.2\n",
        "tokenizer_config.json": b'{"tokenizer_class": "CTRLTokenizer"}',
    }
    del files["tokenizer.json"]

    with pytest.raises(ModelUnavailable, match="CTRLTokenizer is written in Python"):
        completed(write_files(tmp_path / "m", files))


@pytest.mark.parametrize("faithful", [True, False])
def test_where_transformers_splits_texts_in_its_own_way_every_start_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], faithful: bool
) -> None:
    model = sentencepiece_model("bpe")
    config = b'{"tokenizer_class": "LlamaTokenizer", "legacy": true}' if faithful else b"{}"
    files = model_files() | {"tokenizer.model": model, "tokenizer_config.json": config}
    del files["tokenizer.json"]
    source = write_files(tmp_path / "m", files)

    for _ in range(2):
        completed(source)
        reported = "with which the model was trained" in capsys.readouterr().err
        assert reported != faithful


def test_a_tokenizer_that_cannot_be_converted_is_refused(tmp_path: Path) -> None:
    files = model_files() | {"tokenizer.model": b"nonsense"}
    del files["tokenizer.json"]

    with pytest.raises(ModelUnavailable, match="transformers cannot make one"):
        completed(write_files(tmp_path / "m", files))
