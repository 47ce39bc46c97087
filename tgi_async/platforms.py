"""What clouds and orchestrators say about a container, as variables of the server's own.

Each of them says in its own way which model to serve, on which port it will ask and how long it
waits after SIGTERM: by variables, by a folder that it mounts, or by how it starts the container.
What is settled by flags and variables alone, such as `HF_MODEL_ID` and `AIP_HTTP_PORT`, is read by
`arguments` wherever the server runs. Here is what holds in a container only, as only there a folder
`/repository` means anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tgi_async.errors import StartError

FOLDERS = {
    "Inference Endpoints": "/repository",
    "SageMaker": "/opt/ml/model",
    "KServe": "/mnt/models",
}
"""Where a platform puts the model, if it puts any."""

FOLDER_VARIABLES = {"Azure ML": "AZUREML_MODEL_DIR", "Vertex AI": "AIP_STORAGE_URI"}
"""Variables in which a platform says where the model is."""

MODEL_VARIABLES = ("MODEL_ID", "HF_MODEL_ID")
SAGEMAKER_PORT = 8080
SAGEMAKER_GRACE = 20
"""Seconds for requests in progress: SageMaker kills a container 30 s after SIGTERM."""
CLOUD_RUN_GRACE = 5
"""Cloud Run kills it after 10 s."""
FLAG_PREFIX = "SM_TGI_"
"""Of variables that stand for flags: SageMaker's containers get variables and no arguments."""
IMAGE_HF_HOME = "/data"
"""Where the image keeps models, as TGI's does."""
USUAL_HF_HOME = "/root/.cache/huggingface"
"""Where a cache of the machine is often mounted, since it lies there for root."""


class Place(NamedTuple):
    """A place that a platform has for the model."""

    platform: str
    folder: str


def variables(
    arguments: Sequence[str], environment: Mapping[str, str], root: Path = Path("/")
) -> dict[str, str]:
    """Return the variables to set for a server with these flags and variables.

    What the operator has set stays. The exception is the port: the platform asks there and nowhere
    else, while PORT may be the image's; only the flag goes first. `root` is where absolute paths
    begin. Raises StartError where a platform has a place for the model, and no model in it.
    """
    found = hugging_face_home(environment, root)
    if not _model_is_named(arguments, environment) and (model := _model(environment, root)):
        found["MODEL_ID"] = model
    grace = None
    if list(arguments) == ["serve"] or environment.get("SAGEMAKER_BIND_TO_PORT"):
        # SageMaker gives this one argument and no other.
        found["PORT"] = environment.get("SAGEMAKER_BIND_TO_PORT") or str(SAGEMAKER_PORT)
        grace = SAGEMAKER_GRACE
    elif environment.get("K_SERVICE"):
        grace = CLOUD_RUN_GRACE
    if grace is not None and not environment.get("GRACEFUL_TERMINATION_TIMEOUT"):
        found["GRACEFUL_TERMINATION_TIMEOUT"] = str(grace)
    return found


def flags(environment: Mapping[str, str]) -> list[str]:
    """Return the flags that variables stand for: SM_TGI_PORT=81 for --port=81.

    One without a value is a flag without a value.
    """
    return [
        f"--{name.removeprefix(FLAG_PREFIX).lower().replace('_', '-')}" + (value and f"={value}")
        for name, value in sorted(environment.items())
        if name.startswith(FLAG_PREFIX)
    ]


def hugging_face_home(environment: Mapping[str, str], root: Path = Path("/")) -> dict[str, str]:
    """Return HF_HOME for a container with a cache mounted at the usual place instead of /data."""
    if environment.get("HF_HOME") != IMAGE_HF_HOME or _exists(root, f"{IMAGE_HF_HOME}/hub"):
        return {}
    return {"HF_HOME": USUAL_HF_HOME} if _exists(root, USUAL_HF_HOME) else {}


def _model_is_named(arguments: Sequence[str], environment: Mapping[str, str]) -> bool:
    return any(environment.get(name) for name in MODEL_VARIABLES) or any(
        argument == "--model-id" or argument.startswith("--model-id=")
        for argument in (*flags(environment), *arguments)
    )


def _model(environment: Mapping[str, str], root: Path) -> str | None:
    """Return the folder or GGUF file of the first platform that has put something there."""
    for platform, place in _places(environment):
        if "://" in place:
            raise StartError(
                f"{platform} names the model's files by {FOLDER_VARIABLES[platform]}={place}, "
                "which this server does not download. Register the model without artifacts, and "
                "set MODEL_ID to a Hub id, or to a folder where the bucket is mounted."
            )
        folder = _below(root, place)
        if _entries(folder):
            return _with_model(platform, place, folder)
    return None


def _places(environment: Mapping[str, str]) -> Iterator[Place]:
    for platform, variable in FOLDER_VARIABLES.items():
        if place := environment.get(variable):
            yield Place(platform, place)
    for platform, place in FOLDERS.items():
        yield Place(platform, place)


def _with_model(platform: str, place: str, folder: Path) -> str:
    """Return the path of the model in a folder: itself, or the one below it."""
    below = [entry for entry in _entries(folder) if entry.is_dir()]
    models = [path for path in below if _is_model(path)]
    files = [entry for entry in _entries(folder) if entry.suffix.lower() == ".gguf"]
    if _is_model(folder):
        return place
    if len(models) + len(files) == 1:
        return f"{place.rstrip('/')}/{(models + files)[0].name}"
    what = "no model" if not models and not files else f"{len(models) + len(files)} models"
    raise StartError(
        f"{platform}'s folder {place} has {what}: neither it nor exactly one folder in it has a "
        "config.json, and it has not exactly one GGUF file. Set MODEL_ID to what is to be served."
    )


def _is_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def _entries(folder: Path) -> list[Path]:
    """Return what a folder has, but for hidden entries; none where it cannot be read."""
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:
        return []


def _exists(root: Path, place: str) -> bool:
    try:
        return _below(root, place).is_dir()
    except OSError:
        return False


def _below(root: Path, place: str) -> Path:
    return root / place.lstrip("/")
