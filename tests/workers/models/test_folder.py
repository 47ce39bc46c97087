from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.model_files import INDEX, index, model_files, safetensors, write_files
from workers.errors import ModelUnavailable
from workers.models.folder import Lacks, examine, local_folder
from workers.models.weight_files import safetensors_files


def examined(folder: Path, files: dict[str, bytes]) -> Lacks:
    return examine(local_folder(str(write_files(folder, files))))


def test_a_whole_model_lacks_nothing(tmp_path: Path) -> None:
    lacks = examined(tmp_path / "m", model_files())

    assert lacks == Lacks(safetensors=False, tokenizer_json=False)
    assert not lacks


def test_shards_that_are_all_there_are_weights(tmp_path: Path) -> None:
    files = model_files() | {INDEX: index(a="x.safetensors"), "x.safetensors": safetensors("a")}
    del files["model.safetensors"]

    assert not examined(tmp_path / "m", files).safetensors


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", r"it has no config\.json"),
        ("model.safetensors", "it has no weights"),
        ("tokenizer.json", "it has no tokenizer"),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, name: str, message: str) -> None:
    files = model_files()
    del files[name]

    with pytest.raises(ModelUnavailable, match=message):
        examined(tmp_path / "m", files)


SHARDS = [f"model-{number:05}-of-00003.safetensors" for number in (1, 2, 3)]


def shards(*names: str) -> dict[str, bytes]:
    """A model in these shards, each of which holds a tensor of its own."""
    files = model_files() | {name: safetensors(name) for name in names}
    del files["model.safetensors"]
    return files


def test_shards_do_without_an_index(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", shards(*SHARDS))

    assert safetensors_files(folder) == SHARDS
    assert not examine(local_folder(str(folder))).safetensors


def test_a_shard_that_is_missing_is_named_without_an_index_too(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"of its 3 .* missing: \['model-00002-of-00003"):
        examined(tmp_path / "m", shards(SHARDS[0], SHARDS[2]))


def test_an_index_of_other_shards_was_left_behind(tmp_path: Path) -> None:
    stale = {INDEX: index(a="model-00001-of-00002.safetensors", b="x.safetensors")}

    assert safetensors_files(write_files(tmp_path / "m", shards(*SHARDS) | stale)) == SHARDS


def test_an_index_that_names_some_of_the_shards_counts(tmp_path: Path) -> None:
    files = shards(*SHARDS, "other.safetensors") | {INDEX: index(a=SHARDS[0], b="lost.safetensors")}

    with pytest.raises(ModelUnavailable, match=r"of its 2 .* missing: \['lost\.safetensors'\]"):
        examined(tmp_path / "m", files)


def test_a_single_file_counts_more_than_an_index(tmp_path: Path) -> None:
    files = model_files() | {INDEX: index(a="lost.safetensors")}

    assert safetensors_files(write_files(tmp_path / "m", files)) == ["model.safetensors"]


def test_files_of_any_name_are_one_model_if_no_tensor_is_in_two(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", shards("first half.safetensors", "größer.safetensors"))

    assert safetensors_files(folder) == ["first half.safetensors", "größer.safetensors"]


def test_variants_of_one_model_are_refused_by_name(tmp_path: Path) -> None:
    files = shards() | dict.fromkeys(
        ("model.bf16.safetensors", "model.fp16.safetensors"), safetensors("a")
    )

    with pytest.raises(ModelUnavailable, match=r"both model\.bf16.* and model\.fp16.* tensor a"):
        examined(tmp_path / "m", files)


def test_the_config_may_name_the_file(tmp_path: Path) -> None:
    config = b'{"model_type": "llama", "transformers_weights": "mine.safetensors"}'
    files = model_files() | {"config.json": config}
    with pytest.raises(ModelUnavailable, match=r"names the weight file mine\.safetensors"):
        examined(tmp_path / "m", files)

    folder = write_files(tmp_path / "n", files | {"mine.safetensors": safetensors("a")})

    assert safetensors_files(folder) == ["mine.safetensors"]


@pytest.mark.parametrize("name", ["../m/model.safetensors", "/etc/passwd"])
def test_a_weight_file_is_in_the_folder(tmp_path: Path, name: str) -> None:
    files = model_files()
    files["config.json"] = json.dumps({"transformers_weights": name}).encode()
    with pytest.raises(ModelUnavailable, match=r"its config\.json names .* not in the folder"):
        examined(tmp_path / "m", files)

    with pytest.raises(ModelUnavailable, match=r"index\.json names .* not in the folder"):
        examined(tmp_path / "n", shards(SHARDS[0]) | {INDEX: index(a=name)})


@pytest.mark.parametrize("name", ["params.json", "consolidated.safetensors"])
def test_the_layout_of_the_makers_is_named(tmp_path: Path, name: str) -> None:
    files = {name: b"{}", "tokenizer.model": b""}

    with pytest.raises(ModelUnavailable, match=rf"no config\.json.* It has {name}, which is the"):
        examined(tmp_path / "m", files)


def test_a_link_that_leads_nowhere_is_no_file(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", shards(*SHARDS[:2]))
    (folder / SHARDS[2]).symlink_to(tmp_path / "blobs" / "lost")

    with pytest.raises(ModelUnavailable, match=r"of its 3 .* missing: \['model-00003-of-00003"):
        examine(local_folder(str(folder)))


def test_json_with_a_byte_order_mark_is_something_to_convert(tmp_path: Path) -> None:
    files = model_files()
    files["config.json"] = b"\xef\xbb\xbf" + files["config.json"]

    assert examined(tmp_path / "m", files).plain_json == ("config.json",)


@pytest.mark.parametrize(
    ("files", "lacks"),
    [
        ({}, False),
        ({"tokenizer_config.json": b'{"eos_token": "</s>", "pad_token": "</s>"}'}, False),
        ({"tokenizer_config.json": b'{"eos_token": "<x>"}'}, True),
        ({"tokenizer_config.json": b'{"image_token": "<x>"}'}, True),
        ({"tokenizer_config.json": b'{"extra_special_tokens": ["<x>"]}'}, True),
        ({"tokenizer_config.json": b'{"eos_token": "<plain>"}'}, True),
        ({"tokenizer_config.json": b'{"extra_special_tokens": ["<plain>"]}'}, False),
        ({"special_tokens_map.json": b'{"eos_token": {"content": "<x>"}}'}, True),
        ({"added_tokens.json": b'{"<x>": 9}'}, True),
        ({"added_tokens.json": b'{"</s>": 0}'}, False),
    ],
)
def test_special_tokens_that_only_other_files_name_are_lacking(
    tmp_path: Path, files: dict[str, bytes], lacks: bool
) -> None:
    marks = [
        {"id": 0, "content": "</s>", "special": True},
        {"id": 1, "content": "<plain>", "special": False},
    ]
    tokenizer = {"tokenizer.json": json.dumps({"added_tokens": marks, "model": {}}).encode()}

    assert examined(tmp_path / "m", model_files() | tokenizer | files).special_tokens == lacks


@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_a_damaged_file_beside_the_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ModelUnavailable, match=f"{name} is not valid JSON"):
        examined(tmp_path / "m", model_files() | {name: b"{"})


def test_missing_shards_are_named(tmp_path: Path) -> None:
    files = model_files() | {
        INDEX: index(a="1.safetensors", b="2.safetensors", c="3.safetensors"),
        "2.safetensors": safetensors("b"),
    }
    del files["model.safetensors"]

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

    with pytest.raises(ModelUnavailable, match="it has no weights") as refused:
        examined(tmp_path / "m", files)
    assert ("layout of transformers" in str(refused.value)) == name.startswith("consolidated")


@pytest.mark.parametrize("name", ["tokenizer.model", "vocab.json", "vocab.txt", "q.tiktoken"])
def test_an_older_tokenizer_is_something_to_convert(tmp_path: Path, name: str) -> None:
    files = model_files()
    files[name] = files.pop("tokenizer.json")

    assert examined(tmp_path / "m", files).tokenizer_json


@pytest.mark.parametrize(
    "names",
    [
        ["pytorch_model.bin"],
        ["pytorch_model.fp16.bin"],
        ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
    ],
)
def test_pickled_weights_are_something_to_convert(tmp_path: Path, names: list[str]) -> None:
    files = model_files() | dict.fromkeys(names, b"")
    del files["model.safetensors"]

    assert examined(tmp_path / "m", files).safetensors


def test_pickled_weights_may_lie_beside_an_index_of_safetensors(tmp_path: Path) -> None:
    """As after a download that left these out."""
    files = model_files() | {INDEX: index(a=SHARDS[0]), "pytorch_model.bin": b""}
    del files["model.safetensors"]

    assert examined(tmp_path / "m", files).safetensors
