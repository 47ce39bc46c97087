from __future__ import annotations

from pathlib import Path

import pytest

from tests.workers.model_files import INDEX, index, model_files, safetensors, write_files
from workers.models.errors import ModelUnavailable
from workers.models.folder import Lacks, examine, local_folder


def examined(folder: Path, files: dict[str, bytes]) -> Lacks:
    return examine(local_folder(str(write_files(folder, files))))


def test_a_whole_model_lacks_nothing(tmp_path: Path) -> None:
    lacks = examined(tmp_path / "m", model_files())

    assert lacks == Lacks(safetensors=False, tokenizer_json=False)


def test_shards_that_are_all_there_are_weights(tmp_path: Path) -> None:
    files = model_files() | {INDEX: index(a="x.safetensors"), "x.safetensors": safetensors("a")}

    assert not examined(tmp_path / "m", files).safetensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"it has no config\.json"),
        ("model.safetensors", "it has no safetensors weights"),
        ("tokenizer.json", "it has no tokenizer"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, message: str) -> None:
    files = model_files()
    del files[name]

    with pytest.raises(ModelUnavailable, match=message):
        examined(tmp_path / "m", files)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    files = model_files() | {
        INDEX: index(a="1.safetensors", b="2.safetensors", c="3.safetensors"),
        "2.safetensors": safetensors("b"),
    }

    with pytest.raises(ModelUnavailable, match=r"\['1\.safetensors', '3\.safetensors'\]"):
        examined(tmp_path / "m", files)


def test_weights_that_were_cut_short_are_named_with_their_length(tmp_path: Path) -> None:
    whole = safetensors("a")

    with pytest.raises(ModelUnavailable, match=f"has {len(whole) - 1} bytes.*{len(whole)}"):
        examined(tmp_path / "m", model_files() | {"model.safetensors": whole[:-1]})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"version https://git-lfs.example/spec/v1\n",
        b"\2\0\0\0\0\0\0\0[]",
        b"\1" + b"\0" * 9,
    ],
)
def test_a_file_that_is_not_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelUnavailable, match=r"model\.safetensors is not a safetensors file"):
        examined(tmp_path / "m", model_files() | {"model.safetensors": content})


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[]"])
def test_a_config_that_is_not_a_json_object_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelUnavailable, match=r"config\.json is not"):
        examined(tmp_path / "m", model_files() | {"config.json": content})


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "consolidated.safetensors"])
def test_an_adapter_or_a_second_copy_is_not_the_weights(tmp_path: Path, name: str) -> None:
    files = model_files()
    files[name] = files.pop("model.safetensors")

    with pytest.raises(ModelUnavailable, match="no safetensors weights"):
        examined(tmp_path / "m", files)


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "vocab.txt", "q.tiktoken"])
def test_an_older_tokenizer_is_something_to_convert(tmp_path: Path, name: str) -> None:
    files = model_files()
    files[name] = files.pop("tokenizer.json")

    assert examined(tmp_path / "m", files).tokenizer_json


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin"])
def test_pickled_weights_are_something_to_convert(tmp_path: Path, name: str) -> None:
    files = model_files()
    files[name] = files.pop("model.safetensors")

    assert examined(tmp_path / "m", files).safetensors
