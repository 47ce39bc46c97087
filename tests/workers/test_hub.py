from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from tests.workers.hub_server import COMMIT, Hub, serve_hub
from tests.workers.model_files import model_files, pickled

Prepare = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serve_hub(model_files()) as hub:
        yield hub


@pytest.fixture
def prepare(tmp_path: Path, hub: Hub) -> Prepare:
    """Run the command in a process of its own: huggingface_hub reads its settings at import."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        settings = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGING"))
        }
        settings |= {
            "HF_HOME": str(tmp_path / "hf"),
            "HF_ENDPOINT": hub.url,
            "TGI_ASYNC_CACHE": str(tmp_path / "cache"),
            **environment,
        }
        return subprocess.run(
            [sys.executable, "-m", "workers.models.prepare", *arguments],
            env=settings,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return run


def failure(result: subprocess.CompletedProcess[str]) -> str:
    """The one message of a run that failed as it should."""
    assert result.returncode == 1
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    return result.stderr.strip().splitlines()[-1]


def prepared(result: subprocess.CompletedProcess[str]) -> Path:
    """The folder of a run that succeeded."""
    assert result.returncode == 0, result.stderr
    return Path(json.loads(result.stdout)["path"])


def test_a_model_is_downloaded_and_its_commit_reported(prepare: Prepare, hub: Hub) -> None:
    result = prepare("org/model")

    folder = prepared(result)
    assert json.loads(result.stdout)["model_id"] == "org/model"
    assert json.loads(result.stdout)["revision"] == COMMIT
    assert {entry.name: entry.read_bytes() for entry in folder.iterdir()} == hub.files


def test_a_second_start_downloads_nothing(prepare: Prepare, hub: Hub) -> None:
    first = prepared(prepare("org/model"))
    hub.downloaded.clear()

    assert prepared(prepare("org/model")) == first
    assert hub.downloaded == []


def test_files_that_serving_does_not_need_stay_where_they_are(prepare: Prepare, hub: Hub) -> None:
    needed = {"chat_template.jinja", "tokenizer.model", *hub.files}
    for name in (
        "chat_template.jinja",
        "tokenizer.model",
        "pytorch_model.bin",
        "consolidated.safetensors",
        "original/model.safetensors",
        "model.py",
        "README.md",
    ):
        hub.files[name] = name.encode()

    prepared(prepare("org/model"))

    assert set(hub.downloaded) == needed


def test_code_is_taken_where_it_is_trusted(prepare: Prepare, hub: Hub) -> None:
    hub.files["model.py"] = b"pass"

    assert (prepared(prepare("org/model", "--trust-remote-code")) / "model.py").exists()


def test_the_cache_can_be_elsewhere(prepare: Prepare, tmp_path: Path) -> None:
    folder = prepared(prepare("org/model", "--cache", str(tmp_path / "elsewhere")))

    assert folder.is_relative_to(tmp_path / "elsewhere")


def test_a_commit_can_be_named(prepare: Prepare) -> None:
    assert prepared(prepare("org/model", "--revision", COMMIT)).name == COMMIT


def test_a_missing_revision_is_named(prepare: Prepare) -> None:
    message = failure(prepare("org/model", "--revision", "v9"))

    assert "model org/model has no revision 'v9'" in message


def test_a_gated_model_says_what_to_do(prepare: Prepare, hub: Hub) -> None:
    hub.gated, hub.token = True, "secret"

    message = failure(prepare("org/model", HF_TOKEN="of another account"))

    assert f"accept its licence at {hub.url}/org/model and set HF_TOKEN" in message


@pytest.mark.parametrize("name", ["HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"])
def test_a_token_opens_a_private_model(prepare: Prepare, hub: Hub, name: str) -> None:
    hub.token = "secret"

    assert "or is private" in failure(prepare("org/model"))
    prepared(prepare("org/model", **{name: "secret"}))


def test_a_model_that_does_not_exist_is_named(prepare: Prepare) -> None:
    message = failure(prepare("org/other"))

    assert "model org/other does not exist" in message


def test_a_name_that_cannot_be_a_model_is_refused(prepare: Prepare) -> None:
    message = failure(prepare("what is this?"))

    assert "neither an existing folder nor a Hub id" in message


def test_offline_and_not_in_the_cache_is_said(prepare: Prepare) -> None:
    message = failure(prepare("org/model", HF_HUB_OFFLINE="1"))

    assert "is not in the cache" in message
    assert "HF_HUB_OFFLINE is set" in message


def test_offline_serves_what_is_in_the_cache(prepare: Prepare, hub: Hub) -> None:
    folder = prepared(prepare("org/model"))
    hub.down = True

    assert prepared(prepare("org/model", HF_HUB_OFFLINE="1")) == folder


def test_an_unreachable_hub_is_said(prepare: Prepare) -> None:
    message = failure(prepare("org/model", HF_ENDPOINT="http://127.0.0.1:1"))

    assert "http://127.0.0.1:1 cannot be reached" in message


def test_an_unreachable_hub_does_not_stop_a_model_in_the_cache(prepare: Prepare) -> None:
    folder = prepared(prepare("org/model"))

    assert prepared(prepare("org/model", HF_ENDPOINT="http://127.0.0.1:1")) == folder


def test_half_a_model_in_the_cache_is_not_served(prepare: Prepare, hub: Hub) -> None:
    weights = prepared(prepare("org/model")) / "model.safetensors"
    weights.unlink()

    message = failure(prepare("org/model", HF_HUB_OFFLINE="1"))
    assert "only a part of model org/model" in message
    assert prepared(prepare("org/model")) == weights.parent
    assert weights.read_bytes() == hub.files["model.safetensors"]


def test_a_hub_in_trouble_is_said_with_its_status(prepare: Prepare, hub: Hub) -> None:
    hub.down = True

    assert "answered 503" in failure(prepare("org/model"))


def test_a_download_that_broke_goes_on_with_the_files_it_lacks(prepare: Prepare, hub: Hub) -> None:
    hub.broken = "model.safetensors"
    assert "What is complete is kept" in failure(prepare("org/model"))
    assert hub.downloaded

    already = set(hub.downloaded)
    hub.downloaded.clear()
    hub.broken = None
    prepared(prepare("org/model"))

    assert set(hub.downloaded) == hub.files.keys() - already


def test_pickled_weights_are_converted_only_where_asked_for(prepare: Prepare, hub: Hub) -> None:
    del hub.files["model.safetensors"]
    hub.files["pytorch_model.bin"] = pickled({"a": torch.ones(2)})

    message = failure(prepare("org/model"))
    assert "tgi-async download-weights org/model --auto-convert" in message
    assert "pytorch_model.bin" not in hub.downloaded

    folder = prepared(prepare("org/model", "--auto-convert"))
    assert (folder / "model.safetensors").is_file()
    assert prepared(prepare("org/model")) == folder


def test_a_model_without_weights_is_refused(prepare: Prepare, hub: Hub) -> None:
    del hub.files["model.safetensors"]

    assert "it has no safetensors weights" in failure(prepare("org/model"))
