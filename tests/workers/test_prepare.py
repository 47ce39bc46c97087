from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.workers.model_files import model_files, write_files
from workers.models.errors import ModelUnavailable
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
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    with pytest.raises(ModelUnavailable, match="is a file; give a model folder"):
        prepare(str(tmp_path / "model.gguf"))


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
