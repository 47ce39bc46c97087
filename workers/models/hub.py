"""A model of the Hugging Face Hub, downloaded into huggingface_hub's own cache.

huggingface_hub does most of the work: the token (`HF_TOKEN` or `HUGGING_FACE_HUB_TOKEN`), the
mirror (`HF_ENDPOINT`), offline mode (`HF_HUB_OFFLINE`), files already there. Large files come
through `blobs`, which goes on in the middle of a file where an earlier download broke off. What is
said here is which files a server needs and, for each way a download can fail, what to do about it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from workers.errors import ModelUnavailable
from workers.models.blobs import PARALLEL, LargeFile, fetch_all, partial_path
from workers.models.folder import ModelFolder
from workers.models.gguf_choice import choose_gguf, only_gguf
from workers.models.hub_errors import explained
from workers.models.weight_files import INDEX, MEDUSA_PICKLED
from workers.models.weight_files import SAFETENSORS as SAFETENSORS_FILE
from workers.progress import reports, say, size

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

SMALL = ["*.json", "*.jinja", "*.model", "*.spm", "*.tiktoken", "vocab.txt", "merges.txt"]

SAFETENSORS = ["*.safetensors"]

PICKLED = ["pytorch_model*.bin", MEDUSA_PICKLED]

CODE = ["*.py"]

SHA256 = re.compile(r"[0-9a-f]{64}")
"""What the Hub has for an ETag of a file in its large file storage."""

UNWANTED = [
    *(f"*/{pattern}" for pattern in SMALL + SAFETENSORS + PICKLED + CODE if pattern != "*.jinja"),
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
    gguf: str | None = None,
    with_code: bool,
) -> ModelFolder:
    """The model `model_id` at `revision` (a branch, tag or commit; the main branch if None).

    `gguf` names one GGUF file of it, or a quantization; of a model that is there in GGUF only, one
    file is chosen. `cache` is huggingface_hub's cache folder (its own default if None). `with_code`
    also takes the model's Python files. Pickled weights are taken where it has no safetensors.

    Raises `ModelUnavailable`, with a message of its own for a gated, a missing and an unreachable
    model, a missing revision, offline mode, and weights that were damaged on the way.
    """
    wanted = SMALL + (CODE if with_code else [])
    repository = _Repository(model_id, revision, cache, wanted)
    if gguf is not None or only_gguf(repository.names):
        file = choose_gguf(model_id, repository.names, gguf)
        repository.take([file])
        return repository.folder(gguf=file)
    repository.take(wanted + SAFETENSORS)
    if not _has_safetensors(repository.path):
        repository.take(wanted + PICKLED)
    return repository.folder()


class _Repository:
    """A model of the Hub at one commit, a part of which is in the cache.

    `wanted` (patterns) is taken first, by huggingface_hub alone, which finds out the commit and
    what there is.
    """

    def __init__(
        self, model_id: str, revision: str | None, cache: str | None, wanted: list[str]
    ) -> None:
        from huggingface_hub import constants

        # Documented there, though not marked as exported.
        from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

        if not sys.stderr.isatty():
            disable_progress_bars()
        self._model_id = model_id
        self._revision = revision
        self._cache = cache
        root = os.path.expanduser(cache or constants.HF_HUB_CACHE)
        if root.startswith("~"):
            raise ModelUnavailable(
                f"model {model_id} has no place to be kept, as this user has no home folder. Set "
                "HF_HOME to a folder that can be written"
            )
        self._folder = Path(root) / f"models--{model_id.replace('/', '--')}"
        offline = constants.is_offline_mode()
        where = "the local cache (offline mode)" if offline else constants.ENDPOINT
        at = f" at revision {revision}" if revision else ""
        say(f"Looking for {model_id}{at} in {where}")
        with explained(self._model_id, self._revision):
            self.path = self._snapshot(revision, wanted)

    @property
    def names(self) -> frozenset[str]:
        """The files of the repository, as far as they are known."""
        # Where nothing of it was taken, there is no folder yet.
        there = self.path.iterdir() if self.path.is_dir() else ()
        listed = (file.path for file in self._listing() or ())
        return frozenset(listed) | {entry.name for entry in there}

    def folder(self, gguf: str | None = None) -> ModelFolder:
        """What there is in the cache now, with the GGUF file to serve if it is one."""
        top = frozenset(name for name in self.names if "/" not in name)
        file = None if gguf is None else self.path / gguf
        return ModelFolder(self.path, self._model_id, self.path.name, top, file)

    def take(self, wanted: list[str]) -> None:
        """Have the files `wanted` (patterns) in the cache. Raises `ModelUnavailable`."""
        blobs = self._folder / "blobs"
        before = _bytes_in(blobs)

        def progress() -> str:
            return f"Downloading {self._model_id}: {size(_bytes_in(blobs) - before)} so far"

        with explained(self._model_id, self._revision), reports(progress):
            lacking = self._lacking(wanted)
            if lacking == []:
                return
            # What was asked for is asked for again where nothing came: the Hub may be out of
            # reach, and huggingface_hub then knows what is in the cache for a branch.
            revision = self.path.name if self._fetch(lacking or []) else self._revision
            # Links to what came, and takes what is not in the large file storage.
            # A branch may have moved meanwhile.
            self.path = self._snapshot(revision, wanted)
        if fetched := _bytes_in(blobs) - before:
            say(f"Downloaded {size(fetched)}")

    def _lacking(self, wanted: list[str]) -> list[RepoFile] | None:
        """Those of the files `wanted` that are not in the cache; None where that is not known."""
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        listing = self._listing()
        if listing is None:
            return None
        files: Iterator[RepoFile] = filter_repo_objects(
            listing, allow_patterns=wanted, ignore_patterns=UNWANTED, key=lambda file: file.path
        )
        return [file for file in files if not (self.path / file.path).exists()]

    def _fetch(self, files: list[RepoFile]) -> bool:
        """Bring those of `files` that are in the large file storage. Returns whether any came."""
        from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

        with ThreadPoolExecutor(PARALLEL) as pool:
            large = [file for file in pool.map(self._large_file, files) if file is not None]
        for file in large:
            partial = partial_path(self._folder, file.sha256)
            if partial.exists():
                have, all_ = size(partial.stat().st_size), size(file.size)
                say(f"Resuming {file.name}: {have} of {all_} are there")
        if large:
            total = sum(file.size for file in large)
            # Typed by what is below it, which is not.
            with tqdm(total=total, unit="B", unit_scale=True, desc=self._model_id) as bar:  # type: ignore[no-untyped-call]
                fetch_all(large, self._folder, bar.update)
        return bool(large)

    def _large_file(self, file: RepoFile) -> LargeFile | None:
        """`file` if it can be fetched here; None for those that are left to huggingface_hub."""
        import huggingface_hub as hub
        from huggingface_hub import constants

        url = hub.hf_hub_url(self._model_id, file.path, revision=self.path.name)
        try:
            metadata = hub.get_hf_file_metadata(url)
        except Exception:
            # huggingface_hub will meet the same, and look in the cache first.
            return None
        if metadata.etag is None or not SHA256.fullmatch(metadata.etag) or metadata.size is None:
            return None
        # The Hub serves longer ones through a protocol of its own (Xet) only.
        if metadata.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            return None
        return LargeFile(file.path, url, metadata.etag, metadata.size)

    def _listing(self) -> list[RepoFile] | None:
        """The files of the commit, as far as the cache remembers them."""
        import huggingface_hub as hub
        from huggingface_hub import errors

        try:
            return hub.get_cached_repo_tree(
                self._model_id, revision=self.path.name, cache_dir=self._cache
            )
        except errors.CachedRepoTreeNotFoundError:
            return None

    def _snapshot(self, revision: str | None, wanted: list[str]) -> Path:
        import huggingface_hub as hub

        path = hub.snapshot_download(
            self._model_id,
            revision=revision,
            cache_dir=self._cache,
            allow_patterns=wanted,
            ignore_patterns=UNWANTED,
        )
        return Path(path)


def _has_safetensors(path: Path) -> bool:
    return (path / INDEX).exists() or any(
        SAFETENSORS_FILE.fullmatch(entry.name) for entry in path.iterdir()
    )


def _bytes_in(blobs: Path) -> int:
    """The bytes of the files in `blobs`, those still being downloaded included."""
    total = 0
    for path in blobs.glob("*"):
        # A file can be renamed between the listing and the look: it is counted next time.
        with suppress(FileNotFoundError):
            total += path.stat().st_size
    return total
