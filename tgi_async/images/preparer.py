"""The processes that decode images and prepare them for a model."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

from tgi_async import processes
from tgi_async.images.family import Family, Prepared
from tgi_async.images.source import Refused
from tgi_async.images.store import EncodedFile, remove
from tgi_async.subprocess_pool.pool import ProcessEnded, ProcessPool
from tgi_async.wire.messages import PixelArray

log = logging.getLogger(__name__)

COMMAND = processes.command("workers.images.process")
PATIENCE = 180.0
"""Seconds on the clock for one image, or for what a process imports first. Its limit is one of
processor time, of which a process of low priority may get little on a busy machine."""


class NotServed(Exception):
    """The images of this model are not served. The message is for the operator."""


class Answer(NamedTuple):
    """A prepared image, and where its arrays are in its file."""

    prepared: Prepared
    arrays: list[PixelArray]


class _Array(msgspec.Struct):
    name: str
    dtype: str
    shape: list[int]
    offset: int


class _Image(msgspec.Struct):
    digest: str
    text: str
    n_tokens: int
    n_bytes: int
    width: int
    height: int
    arrays: list[_Array]


class _Reply(msgspec.Struct):
    """A line of a process, which has one of these."""

    family: Family | None = None
    image: _Image | None = None
    error: str = ""


class Preparer:
    """Processes for one model folder: those that are busy and one more. For one event loop."""

    def __init__(
        self,
        folder: Path,
        *,
        max_pixels: int,
        trust_remote_code: bool,
        command: tuple[str, ...] = COMMAND,
        n_processes: int | None = None,
        patience: float = PATIENCE,
    ) -> None:
        start = {
            "folder": str(folder),
            "max_pixels": max_pixels,
            "trust_remote_code": trust_remote_code,
        }
        self._pool = ProcessPool(
            command,
            json.dumps(start).encode(),
            n_processes=n_processes or _n_processes(),
            name="images",
            patience=patience,
            # One takes seconds to start, which no image shall wait for while another is prepared.
            one_more=True,
        )

    async def describe(self) -> Family:
        """Return how the model takes images. Raises NotServed."""
        line = b'{"describe": true}'
        try:
            job = self._pool.threads.submit(self._pool.ask, line)
            reply = _read(await asyncio.wrap_future(job))
        except ProcessEnded as ended:
            raise NotServed(f"the process that prepares them {ended}") from None
        if reply.family is None:
            raise NotServed(reply.error)
        return reply.family

    async def prepare(self, encoded: EncodedFile, detail: str, path: str) -> Answer:
        """Prepare an image, in turn with those of other clients than this task's.

        The arrays are written to `path`; what this leaves there when it fails is of no use, and
        gone if it is cancelled. Raises Refused.
        """
        line = {"file": encoded.path, "detail": detail, "out": path}
        job = self._pool.threads.submit(self._pool.ask, json.dumps(line).encode())
        encoded.__enter__()
        job.add_done_callback(encoded.__exit__)
        try:
            reply = _read(await asyncio.wrap_future(job))
        except ProcessEnded as ended:
            with suppress(RuntimeError):  # the server is stopping
                self._pool.threads.submit(self._pool.prepare)
            raise Refused(f"invalid image: {_why(ended)}") from None
        except asyncio.CancelledError:
            # The process may still be writing.
            job.add_done_callback(lambda _: remove(path))
            raise
        if reply.image is None:
            raise Refused(f"invalid image: {reply.error}")
        found = reply.image
        prepared = Prepared(
            digest=bytes.fromhex(found.digest),
            text=found.text,
            n_tokens=found.n_tokens,
            n_bytes=found.n_bytes,
            width=found.width,
            height=found.height,
        )
        arrays = [PixelArray(one.name, one.dtype, one.shape, one.offset) for one in found.arrays]
        return Answer(prepared, arrays)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()


def _read(line: bytes) -> _Reply:
    return msgspec.json.decode(line, type=_Reply)


def _why(ended: ProcessEnded) -> str:
    log.warning(
        "the process that was to prepare an image ended with status %d: the request is refused, "
        "and another process is started",
        ended.status,
    )
    if ended.status in (-signal.SIGPROF, -signal.SIGKILL):
        return "preparing it takes too much time or memory. Send a smaller one"
    return "it cannot be prepared"


def _n_processes() -> int:
    """Return how many prepare images at once: a small part of the processors, as a busy server
    needs them for other things too."""
    return max(2, min(8, (os.cpu_count() or 1) // 4))
