from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.model_files import model_files, write_files
from tests.helpers.tiny_gguf import write_tiny_gguf
from workers.errors import ModelUnavailable
from workers.models.folder import Lacks, examine, local_folder
from workers.models.prepare import main, prepare


def test_a_local_folder_is_served_where_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(write_files(tmp_path / "m", model_files()))

    assert main([folder]) == 0

    assert json.loads(capsys.readouterr().out) == {
        "path": folder,
        "model_id": folder,
        "revision": None,
        "speculator": "",
    }


def test_a_failure_is_one_message_and_a_status(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nowhere")]) == 1

    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == f"Error: the model folder {tmp_path / 'nowhere'} does not exist\n"


@pytest.mark.parametrize("model_id", ["./nowhere", "../nowhere", "~/nowhere/at/all", "a/b/c"])
def test_a_path_that_does_not_exist_is_not_looked_for_on_the_hub(model_id: str) -> None:
    with pytest.raises(ModelUnavailable, match="does not exist"):
        prepare(model_id)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")

    with pytest.raises(ModelUnavailable, match="is a file; give a model folder, a GGUF file"):
        prepare(str(tmp_path / "model.safetensors"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gguf_file_is_converted_once(tmp_path: Path, cache: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").path

    prepared = prepare(str(gguf))
    assert prepare(str(gguf)) == prepared

    assert prepared["model_id"] == str(gguf)
    folder = Path(str(prepared["path"]))
    assert folder.is_relative_to(cache)
    assert examine(local_folder(str(folder))) == Lacks(safetensors=False, tokenizer_json=False)


def test_the_blocks_of_a_gguf_file_are_kept_in_a_folder_of_their_own(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").path
    plain = Path(str(prepare(str(gguf))["path"]))

    assert main([str(gguf), "--quantize", "gguf"]) == 0

    packed = Path(json.loads(capsys.readouterr().out)["path"])
    settings = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert settings["types"]["model.layers.1.mlp.up_proj"] == "Q8_0"
    assert "quantization_config" not in json.loads((plain / "config.json").read_text())
    sizes = [(one / "model.safetensors").stat().st_size for one in (packed, plain)]
    assert sizes[0] < 0.6 * sizes[1]


def test_of_a_folder_with_gguf_files_only_one_is_served(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tiny-Q4_0.gguf", "tiny-Q8_0.gguf", "mmproj-F16.gguf"):
        write_tiny_gguf(tmp_path / name)

    folder = Path(str(prepare(str(tmp_path))["path"]))

    assert (folder / "model.safetensors").is_file()
    reported = capsys.readouterr().err
    assert "Of the 2 GGUF files" in reported
    assert "tiny-Q8_0.gguf is taken" in reported


def test_a_folder_with_safetensors_is_not_its_gguf_file(tmp_path: Path) -> None:
    folder = write_files(tmp_path / "m", model_files() | {"m.gguf": b"GGUF"})

    assert prepare(str(folder))["path"] == str(folder)


def test_a_changed_gguf_file_is_converted_anew(tmp_path: Path, cache: Path) -> None:
    gguf = write_tiny_gguf(tmp_path / "tiny.gguf").path
    first = prepare(str(gguf))
    write_tiny_gguf(gguf, tied=False)

    assert prepare(str(gguf)) != first


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    folder = str(write_files(tmp_path / "m", model_files()))

    with pytest.raises(ModelUnavailable, match="--revision v1 was given"):
        prepare(folder, revision="v1")
    with pytest.raises(ModelUnavailable, match="--revision v1 was given"):
        prepare(None, revision="v1")


def test_nothing_heavy_is_imported_when_there_is_nothing_to_do(tmp_path: Path) -> None:
    folder = str(write_files(tmp_path / "m", model_files()))
    script = (
        "import sys; from workers.models.prepare import prepare; prepare(sys.argv[1]); "
        "print({'torch', 'transformers', 'numpy', 'huggingface_hub', 'gguf'} & set(sys.modules))"
    )

    result = subprocess.run(
        [sys.executable, "-c", script, folder], capture_output=True, text=True, check=True
    )

    assert result.stdout.strip() == "set()"
