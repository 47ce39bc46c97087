"""Folders of our own making: built once, used by every later start.

A folder is built under a temporary name and renamed when it is whole, so that a build that was
interrupted is never used. A lock that dies with its process keeps two starts from building the
same folder at once: the second one waits and finds it done.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from workers.models.errors import ModelUnavailable
from workers.models.progress import say


def cache_root() -> Path:
    """`$TGI_ASYNC_CACHE`, or `~/.cache/tgi-async`."""
    given = os.environ.get("TGI_ASYNC_CACHE")
    return Path(given).expanduser().absolute() if given else Path.home() / ".cache" / "tgi-async"


def is_built(name: str) -> bool:
    """Whether the folder `name` is in the cache, whole."""
    return (cache_root() / name).is_dir()


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """The folder `name` in the cache, made by `build(empty_folder)` if it is not there yet.

    `name` must change whenever what `build` would write changes.
    """
    folder = cache_root() / name
    if is_built(name):
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with (folder.parent / f".{name}.lock").open("w") as lock:
            _wait_for(lock, name)
            if not folder.is_dir():
                _build(folder, build)
    except OSError as error:
        raise ModelUnavailable(
            f"cannot write the prepared model to {folder}: {error.strerror or error}. "
            "Set TGI_ASYNC_CACHE to a folder that is writable and has space."
        ) from error
    return folder


def _wait_for(lock: TextIO, name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"Another start is preparing {name}: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    # What is there was left by a build that died: only the lock's holder gets here.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
