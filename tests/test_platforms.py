from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tgi_async.errors import StartError
from tgi_async.platforms import flags, variables

CONFIG = "config.json"
SAGEMAKER = {"PORT": "8080", "GRACEFUL_TERMINATION_TIMEOUT": "20"}


@dataclass(frozen=True)
class Contract:
    """How a platform starts a container, and the variables that come of it."""

    name: str
    found: dict[str, str]
    arguments: Sequence[str] = ()
    environment: dict[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()


CONTRACTS = [
    Contract("plain", {}, ["--model-id", "x"], {"PORT": "80", "HF_HOME": "/data"}),
    Contract("inference endpoints", {"MODEL_ID": "/repository"}, files=[f"/repository/{CONFIG}"]),
    Contract(
        "inference endpoints, as for TGI",
        {},
        environment={"MODEL_ID": "/repository"},
        files=[f"/repository/{CONFIG}"],
    ),
    Contract(
        "a GGUF file",
        {"MODEL_ID": "/repository/a.gguf"},
        files=["/repository/a.gguf", "/repository/README.md"],
    ),
    Contract("sagemaker, of the Hub", SAGEMAKER, ["serve"], {"HF_MODEL_ID": "a/b", "PORT": "80"}),
    Contract(
        "sagemaker, of S3",
        SAGEMAKER | {"MODEL_ID": "/opt/ml/model"},
        ["serve"],
        files=[f"/opt/ml/model/{CONFIG}"],
    ),
    Contract(
        "sagemaker, of the Hub with an empty folder",
        SAGEMAKER,
        ["serve"],
        {"HF_MODEL_ID": "a/b"},
        files=["/opt/ml/model/.keep"],
    ),
    Contract(
        "sagemaker, several containers",
        SAGEMAKER | {"PORT": "9001"},
        ["serve"],
        {"HF_MODEL_ID": "a/b", "SAGEMAKER_BIND_TO_PORT": "9001", "PORT": "80"},
    ),
    Contract(
        "sagemaker, own grace",
        {"PORT": "8080"},
        ["serve"],
        {"HF_MODEL_ID": "a/b", "GRACEFUL_TERMINATION_TIMEOUT": "7"},
    ),
    Contract("serve by hand", {}, ["serve", "--model-id=a/b"], {"PORT": "80"}),
    Contract("vertex", {}, environment={"AIP_STORAGE_URI": "", "AIP_HTTP_PORT": "8080"}),
    Contract(
        "vertex, of the Hub with artifacts",
        {},
        ["--model-id=a/b"],
        {"AIP_STORAGE_URI": "gs://bucket/model"},
    ),
    Contract(
        "vertex, on this machine",
        {"MODEL_ID": "/artifacts"},
        environment={"AIP_STORAGE_URI": "/artifacts"},
        files=[f"/artifacts/{CONFIG}"],
    ),
    Contract(
        "azure",
        {"MODEL_ID": "/var/models/qwen/1/files"},
        environment={"AZUREML_MODEL_DIR": "/var/models/qwen/1"},
        files=[f"/var/models/qwen/1/files/{CONFIG}"],
    ),
    Contract(
        "cloud run",
        {"GRACEFUL_TERMINATION_TIMEOUT": "5"},
        environment={"K_SERVICE": "mine", "PORT": "8080"},
    ),
    Contract("kserve", {"MODEL_ID": "/mnt/models"}, ["--kserve"], files=[f"/mnt/models/{CONFIG}"]),
    Contract("a cache at /data", {}, environment={"HF_HOME": "/data"}, files=["/data/hub/a"]),
    Contract(
        "a cache at root's usual place",
        {"HF_HOME": "/root/.cache/huggingface"},
        environment={"HF_HOME": "/data"},
        files=["/root/.cache/huggingface/hub/a", "/data/tgi-async/a"],
    ),
    Contract(
        "caches at both",
        {},
        environment={"HF_HOME": "/data"},
        files=["/root/.cache/huggingface/hub/a", "/data/hub/a"],
    ),
    Contract(
        "a cache elsewhere",
        {},
        environment={"HF_HOME": "/cache"},
        files=["/root/.cache/huggingface/hub/a"],
    ),
]


def made(root: Path, files: Sequence[str]) -> Path:
    for name in files:
        path = root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


@pytest.mark.parametrize("one", CONTRACTS, ids=lambda one: one.name)
def test_a_platform_is_understood(one: Contract, tmp_path: Path) -> None:
    root = made(tmp_path, one.files)
    assert variables(one.arguments, one.environment, root) == one.found


def test_variables_of_sagemaker_stand_for_flags() -> None:
    environment = {
        "SM_TGI_MAX_TOTAL_TOKENS": "4096",
        "SM_TGI_TRUST_REMOTE_CODE": "",
        "SM_TGI_CHAT_TEMPLATE": "-a b",
        "SM_NUM_GPUS": "1",
        "MAX_INPUT_TOKENS": "5",
    }
    assert flags(environment) == [
        "--chat-template=-a b",
        "--max-total-tokens=4096",
        "--trust-remote-code",
    ]


def test_a_model_that_a_flag_in_a_variable_names_is_served(tmp_path: Path) -> None:
    root = made(tmp_path, ["/opt/ml/model/config.json"])
    assert variables(["serve"], {"SM_TGI_MODEL_ID": "a/b"}, root) == SAGEMAKER


@pytest.mark.parametrize("name", ["MODEL_ID", "HF_MODEL_ID"])
def test_a_model_that_is_named_comes_before_a_platforms(name: str, tmp_path: Path) -> None:
    root = made(tmp_path, ["/repository/config.json"])
    assert variables((), {name: "a/b"}, root) == {}
    assert variables(["--model-id", "a/b"], {}, root) == {}
    assert variables((), {name: ""}, root) == {"MODEL_ID": "/repository"}


@pytest.mark.parametrize(
    ("environment", "files", "reason"),
    [
        ({"AIP_STORAGE_URI": "gs://b/m"}, [], "AIP_STORAGE_URI=gs://b/m, which .* not download"),
        ({}, ["/repository/handler.py"], "Endpoints's folder /repository has no model"),
        ({}, ["/mnt/models/a.gguf", "/mnt/models/b.gguf"], "KServe's .* has 2 models"),
        (
            {"AZUREML_MODEL_DIR": "/m"},
            ["/m/a/config.json", "/m/b/config.json"],
            "Azure ML's folder /m has 2 models",
        ),
    ],
)
def test_no_other_model_is_served_than_the_platforms(
    environment: dict[str, str], files: list[str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(StartError, match=f"{reason}.*MODEL_ID"):
        variables((), environment, made(tmp_path, files))
