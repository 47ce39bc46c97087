"""Large files of the Hub, fetched into the blobs of huggingface_hub's cache.

huggingface_hub throws away what has come of a file when a download ends before the file is whole.
Here the bytes go to `<sha256>.incomplete` beside the place of the blob, and a later attempt, of
this process or of the next one, asks the server for the rest. A file that is whole and has the
sha256 that the Hub promised is renamed to the name that huggingface_hub gives the blob, which then
finds it in its cache.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from workers.errors import ModelUnavailable
from workers.progress import say

PARALLEL = 8
"""Files fetched at the same time."""

ATTEMPTS = 6
"""In a row, without a byte more than ever before of that file."""

FIRST_WAIT = 0.5
"""Seconds before the second attempt; each further wait is twice as long."""

Report = Callable[[int], None]
"""Called with the number of bytes that came, negative where some must come again."""


@dataclass(frozen=True, slots=True)
class LargeFile:
    """A file in the Hub's large file storage."""

    name: str
    url: str
    sha256: str
    """Also the name of its blob."""
    size: int
    """Bytes."""


class _Stopped(Exception):
    """Another file failed, or the process is asked to end."""


def fetch_all(files: Iterable[LargeFile], repository: Path, report: Report) -> None:
    """Fetch `files` into the blobs of `repository`, huggingface_hub's folder for it.

    The first file that fails ends the others, each of which keeps what it has. Raises
    `ModelUnavailable` for content that is not what the Hub promised, OSError for the disk, and what
    huggingface_hub raises for an answer other than the file or for a network that stays broken.
    """
    (repository / "blobs").mkdir(parents=True, exist_ok=True)
    stop = threading.Event()
    with ThreadPoolExecutor(PARALLEL) as pool:
        fetches = [pool.submit(_Fetch(file, repository, report, stop)) for file in files]
        try:
            for fetch in as_completed(fetches):
                fetch.result()
        except BaseException:
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def partial_path(repository: Path, sha256: str) -> Path:
    """Where the bytes of a blob are until it is whole."""
    return repository / "blobs" / f"{sha256}.incomplete"


class _Fetch:
    def __init__(
        self, file: LargeFile, repository: Path, report: Report, stop: threading.Event
    ) -> None:
        self._file = file
        self._blob = repository / "blobs" / file.sha256
        self._partial = partial_path(repository, file.sha256)
        self._lock = repository.parent / ".locks" / repository.name / f"{file.sha256}.lock"
        self._report = report
        self._stop = stop

    def __call__(self) -> None:
        # Documented there, though not marked as exported. Its lock, for the same blob.
        from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]

        self._lock.parent.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(self._lock):
            if self._blob.exists():
                self._report(self._file.size)
                return
            self._fetch_rest()
            self._verify()
            self._partial.replace(self._blob)

    def _fetch_rest(self) -> None:
        from huggingface_hub import errors

        have = self._size()
        if have > self._file.size:
            self._partial.unlink()
            have = 0
        self._report(have)
        most, failures = have, 0
        # A file of no bytes is asked for too, so that it is there.
        while have < self._file.size or not self._partial.exists():
            try:
                self._stream(have)
            except errors.HfHubHTTPError as error:
                if error.response.status_code not in (408, 429) and error.response.is_client_error:
                    raise
                failure: Exception = error
            except (OSError, _Stopped):
                raise
            except Exception as error:
                # The errors of the transport below huggingface_hub change with its versions.
                failure = error
            else:
                failure = EOFError("the server ended the file early")
            have = self._size()
            if have >= self._file.size:
                continue
            failures = 1 if have > most else failures + 1
            most = max(most, have)
            if failures >= ATTEMPTS:
                raise failure
            if self._stop.wait(FIRST_WAIT * 2 ** (failures - 1)):
                raise _Stopped
            say(f"{self._file.name} was interrupted at {have} of {self._file.size} bytes: resuming")

    def _size(self) -> int:
        return self._partial.stat().st_size if self._partial.exists() else 0

    def _stream(self, have: int) -> None:
        """Write what the server sends from byte `have` on."""
        from huggingface_hub import constants, get_session, hf_raise_for_status
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

        headers = build_hf_headers() | {"Accept-Encoding": "identity"}
        if have:
            # No If-Range: the ETag of the storage behind a redirect is not the Hub's. What
            # was put together wrongly does not have the sha256.
            headers["Range"] = f"bytes={have}-"
        with get_session().stream(
            "GET",
            self._file.url,
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            follow_redirects=True,
        ) as response:
            hf_raise_for_status(response)
            if have and response.status_code != 206:
                self._report(-have)
                have = 0
            # Unbuffered, so that what has come survives a kill; at a position, so that two writers
            # under a lock that does not hold write the same bytes to the same place.
            descriptor = os.open(self._partial, os.O_WRONLY | os.O_CREAT, 0o666)
            try:
                os.truncate(descriptor, have)
                for chunk in response.iter_bytes():
                    if self._stop.is_set():
                        raise _Stopped
                    _write(descriptor, chunk, have)
                    have += len(chunk)
                    self._report(len(chunk))
            finally:
                os.close(descriptor)

    def _verify(self) -> None:
        with self._partial.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self._file.sha256:
            self._partial.unlink()
            raise ModelUnavailable(
                f"{self._file.name} came with the sha256 {found} and should have "
                f"{self._file.sha256}: it was damaged on the way and is not kept. Start again; if "
                f"it comes so again, the server's copy is damaged ({self._file.url})"
            )


def _write(descriptor: int, chunk: bytes, at: int) -> None:
    """All of `chunk` at the position `at`."""
    rest = memoryview(chunk)
    while rest:
        written = os.pwrite(descriptor, rest, at)
        rest, at = rest[written:], at + written
