"""Folders of draft models, and the models that they draft for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.model_files import model_files, pickled, write_files
from tests.helpers.tiny_drafts import (
    MEDUSA_FILE,
    medusa_config,
    medusa_tensors,
    mlp_config,
    mlp_tensors,
    save_draft_model,
)
from tests.helpers.tiny_gguf import write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models.prepare import prepare


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_files(tmp_path / "base", model_files())


def medusa(tmp_path: Path, base: str, **more: object) -> Path:
    config = medusa_config(base=base) | more
    return save_draft_model(tmp_path / "medusa", config, medusa_tensors(), MEDUSA_FILE)


@pytest.mark.parametrize("named", ["absolute", "../base", "base"])
def test_the_model_beside_it_is_what_is_served(tmp_path: Path, base: Path, named: str) -> None:
    folder = medusa(tmp_path, str(base) if named == "absolute" else named)

    assert prepare(str(folder)) == {
        "path": str(base),
        "model_id": str(folder),
        "revision": None,
        "speculator": str(folder),
    }


def test_architectures_in_its_config_hide_nothing(tmp_path: Path, base: Path) -> None:
    folder = medusa(tmp_path, "base", architectures=["MedusaModel"], model_type="llama")
    assert prepare(str(folder))["speculator"] == str(folder)


def test_what_is_served_is_completed(tmp_path: Path) -> None:
    files = model_files()
    del files["model.safetensors"]
    write_files(tmp_path / "base", files | {"pytorch_model.bin": pickled({"a": torch.ones(2)})})
    folder = save_draft_model(tmp_path / "mlp", mlp_config(base="base"), mlp_tensors())

    prepared = prepare(str(folder))

    assert (Path(str(prepared["path"])) / "model.safetensors").is_file()
    assert prepared["speculator"] == str(folder)


def test_a_gguf_file_may_be_what_is_served(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    folder = medusa(tmp_path, "tiny.gguf")
    prepared = prepare(str(folder))
    assert (Path(str(prepared["path"])) / "model.safetensors").is_file()
    assert prepared["speculator"] == str(folder)


@pytest.mark.parametrize("name", ["medusa_lm_head.pt", "pytorch_model.bin"])
def test_pickled_weights_become_safetensors(tmp_path: Path, base: Path, name: str) -> None:
    tensors = medusa_tensors()
    files = {"config.json": json.dumps(medusa_config(base="base")).encode(), name: pickled(tensors)}
    folder = write_files(tmp_path / "medusa", files)

    made = Path(str(prepare(str(folder))["speculator"]))

    (written,) = made.glob("*.safetensors")
    assert load_file(written).keys() == tensors.keys()
    assert json.loads((made / "config.json").read_text()) == medusa_config(base="base")
    assert sorted(one.name for one in folder.iterdir()) == sorted(files)


def test_a_model_with_files_of_heads_beside_it_is_no_draft_model(tmp_path: Path) -> None:
    files = model_files() | {"medusa_lm_head.pt": pickled(medusa_tensors())}
    folder = write_files(tmp_path / "m", files)
    assert prepare(str(folder))["speculator"] == ""


def fails(folder: Path, said: str) -> None:
    with pytest.raises(ModelUnavailable, match=rf"^model {folder}[: ].*{said}"):
        prepare(str(folder))


def test_without_a_base_it_says_what_to_do(tmp_path: Path) -> None:
    config = medusa_config()
    del config["base_model_name_or_path"]
    folder = save_draft_model(tmp_path / "m", config, medusa_tensors(), MEDUSA_FILE)
    fails(folder, "that of a Medusa checkpoint, and does not say for which model: write that one's")


def test_a_base_that_is_not_there_is_named(tmp_path: Path) -> None:
    fails(medusa(tmp_path, "../nowhere"), r"for \.\./nowhere .* folder \.\./nowhere does not")


def test_a_base_that_is_no_model_is_named(tmp_path: Path, base: Path) -> None:
    (base / "tokenizer.json").unlink()
    fails(medusa(tmp_path, "base"), rf"for {base} .* model {base}: it has no tokenizer")


@pytest.mark.parametrize("named", [".", "../medusa", "other"])
def test_a_draft_model_drafts_for_none_of_its_kind(tmp_path: Path, named: str) -> None:
    save_draft_model(tmp_path / "other", mlp_config(base="medusa"), mlp_tensors())
    fails(medusa(tmp_path, named), "it is a draft model itself")


def test_without_weights_it_says_which(tmp_path: Path, base: Path) -> None:
    config = json.dumps(medusa_config(base="base")).encode()
    folder = write_files(tmp_path / "m", {"config.json": config})
    fails(
        folder, r"it is a Medusa checkpoint without weights \(\*\.safetensors, medusa_lm_head\.pt"
    )


def test_weights_that_were_not_fetched_are_named(tmp_path: Path, base: Path) -> None:
    folder = medusa(tmp_path, "base")
    (folder / MEDUSA_FILE).write_bytes(b"version https://git-lfs.github.com/spec/v1")
    fails(folder, "medusa_lm_head.safetensors is not a safetensors file")


def test_a_number_of_heads_that_cannot_be_is_named(tmp_path: Path, base: Path) -> None:
    fails(medusa(tmp_path, "base", medusa_num_heads=0), "medusa_num_heads must be a number")
