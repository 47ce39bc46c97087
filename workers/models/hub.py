"""A model of the Hugging Face Hub, downloaded into huggingface_hub's own cache.

huggingface_hub does the work: the token (`HF_TOKEN` or `HUGGING_FACE_HUB_TOKEN`), the mirror
(`HF_ENDPOINT`), offline mode (`HF_HUB_OFFLINE`), files already there, and the progress bars on a
terminal. What is said here is which files a server needs and, for each way a download can fail,
what to do about it.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path

from workers.models.errors import ModelUnavailable
from workers.models.folder import INDEX, ModelFolder
from workers.models.progress import reports, say, size

WANTED = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.tiktoken", "vocab.txt", "merges.txt"]

PICKLED = ["pytorch_model*.bin"]

CODE = ["*.py"]

UNWANTED = [
    *(f"*/{pattern}" for pattern in WANTED + PICKLED + CODE if pattern != "*.jinja"),
    "consolidated*",
    "*.bin.index.json",
]
"""What is in subfolders (other formats, training state), but for additional chat templates, and
second copies of the weights."""


def download(
    model_id: str,
    revision: str | None,
    cache: str | None,
    *,
    with_code: bool,
    with_pickled: bool,
) -> ModelFolder:
    """The model `model_id` at `revision` (a branch, tag or commit; the main branch if None).

    `cache` is huggingface_hub's cache folder (its own default if None). `with_code` also takes the
    model's Python files; `with_pickled` also takes pickled weights where it has no safetensors.

    Raises `ModelUnavailable`, with a message of its own for a gated, a missing and an unreachable
    model, a missing revision, and offline mode.
    """
    wanted = WANTED + (CODE if with_code else [])
    path = _snapshot(model_id, revision, cache, wanted)
    if with_pickled and not _has_safetensors(path):
        path = _snapshot(model_id, revision, cache, wanted + PICKLED)
    files = _listing(model_id, path.name, cache) | {entry.name for entry in path.iterdir()}
    return ModelFolder(path, model_id, path.name, frozenset(files))


def _snapshot(model_id: str, revision: str | None, cache: str | None, wanted: list[str]) -> Path:
    import huggingface_hub as hub
    from huggingface_hub import constants, errors

    # Documented there, though not marked as exported.
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()
    at = f" at revision {revision}" if revision else ""
    where = "the local cache (offline mode)" if constants.is_offline_mode() else constants.ENDPOINT
    say(f"Looking for {model_id}{at} in {where}")
    root = Path(cache or constants.HF_HUB_CACHE).expanduser()
    blobs = root / f"models--{model_id.replace('/', '--')}" / "blobs"
    before = _bytes_in(blobs)
    try:
        with reports(lambda: f"Downloading {model_id}: {size(_bytes_in(blobs) - before)} so far"):
            path = hub.snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache,
                allow_patterns=wanted,
                ignore_patterns=UNWANTED,
            )
    except errors.HFValidationError as error:
        raise ModelUnavailable(
            f"{model_id!r} is neither an existing folder nor a Hub id (owner/name)"
        ) from error
    except errors.GatedRepoError as error:
        raise ModelUnavailable(
            f"model {model_id} is gated: accept its licence at {constants.ENDPOINT}/{model_id} "
            "and set HF_TOKEN to a token of the account that did"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id} has no revision {revision!r}: give a branch, a tag or a commit"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id} does not exist on {constants.ENDPOINT}, or is private: check the "
            "spelling, or set HF_TOKEN to a token that may read it"
        ) from error
    except errors.HfHubHTTPError as error:
        raise ModelUnavailable(_refused(model_id, error)) from error
    except errors.IncompleteSnapshotError as error:
        raise ModelUnavailable(
            f"only a part of model {model_id}{at} is in the cache, and the rest cannot be "
            f"fetched: {_cause(error)}"
        ) from error
    except errors.LocalEntryNotFoundError as error:
        raise ModelUnavailable(
            f"model {model_id}{at} is not in the cache and cannot be fetched: {_cause(error)}"
        ) from error
    except Exception as error:
        # The transport below huggingface_hub has changed from version to version, and with it
        # the errors of a connection that breaks in the middle of a file.
        raise ModelUnavailable(
            f"downloading model {model_id} failed: {error}. What is complete is kept; start again"
        ) from error
    if fetched := _bytes_in(blobs) - before:
        say(f"Downloaded {size(fetched)}")
    return Path(path)


def _cause(error: Exception) -> str:
    from huggingface_hub import constants, errors

    cause = error.__cause__ or error
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set. Unset it to download"
    if isinstance(cause, errors.HfHubHTTPError):
        return f"{constants.ENDPOINT} answered {cause.response.status_code}. Try again later"
    return f"{constants.ENDPOINT} cannot be reached ({cause}). Check the network and HF_ENDPOINT"


def _refused(model_id: str, error: Exception) -> str:
    from huggingface_hub import constants, errors

    status = error.response.status_code if isinstance(error, errors.HfHubHTTPError) else None
    if status in (401, 403):
        return f"{constants.ENDPOINT} refused the token for model {model_id}: check HF_TOKEN"
    return f"{constants.ENDPOINT} answered {status} for model {model_id}. Try again later"


def _has_safetensors(path: Path) -> bool:
    return (path / INDEX).exists() or any(path.glob("*.safetensors"))


def _listing(model_id: str, revision: str, cache: str | None) -> set[str]:
    """The names at the top of the repository, as far as the cache remembers them."""
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        tree = hub.get_cached_repo_tree(model_id, revision=revision, cache_dir=cache)
    except errors.CachedRepoTreeNotFoundError:
        return set()
    return {file.path for file in tree if "/" not in file.path}


def _bytes_in(blobs: Path) -> int:
    """The bytes of the files in `blobs`, those still being downloaded included."""
    total = 0
    for path in blobs.glob("*"):
        # A file can be renamed between the listing and the look: it is counted next time.
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
