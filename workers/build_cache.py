"""A cache of built folders: each is built once and used by every later start.

A folder is built under a temporary name and renamed when it is whole, so that a build that was
interrupted is never used. A lock that dies with its process keeps two starts from building the
same folder at once: the second one waits and finds it done.

Where the cache cannot be written, what is already in it is used all the same, and what is not is
built in a scratch folder, which the caller that named it removes. An image may bring a cache of its
own, which is only read, so that what it was built with is found whatever volume the cache is on.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TextIO, TypeVar

from workers.errors import ModelUnavailable
from workers.progress import say

T = TypeVar("T")

ADVICE = "Set TGI_ASYNC_CACHE to a folder that is writable and has space."

_scratch: list[Path] = []


def use_scratch(folder: Path) -> None:
    """Let this process write to `folder` what it cannot write to the cache.

    Libraries that keep files in the home folder use it too, where the home cannot be written.
    """
    _scratch[:] = [folder / "cache"]
    home = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    huggingface = os.environ.get("HF_HOME") or os.path.join(home, "huggingface")
    places = {
        "HF_MODULES_CACHE": os.path.join(huggingface, "modules"),  # a model's own code
        "TRITON_CACHE_DIR": os.path.expanduser("~/.triton/cache"),
    }
    for variable, place in places.items():
        if not can_write(place):
            os.environ.setdefault(variable, str(folder / variable.lower()))
    try:
        with open(os.environ.get("HF_TOKEN_PATH") or os.path.join(huggingface, "token")):
            pass
    except FileNotFoundError:
        pass
    except OSError:  # huggingface_hub would fail with it
        os.environ["HF_TOKEN_PATH"] = str(folder / "no-token")
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # torch asks for one when it is imported
        tempfile.tempdir = os.environ["TMPDIR"] = str(folder)


def can_write(place: str) -> bool:
    """Return whether the folder exists and can be written, or can be made."""
    if not os.path.isabs(place):  # "~/..." where there is no home
        return False
    while not os.path.lexists(place):
        place = os.path.dirname(place)
    return os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK)


def cache_root() -> Path | None:
    """Return `$TGI_ASYNC_CACHE`, or `~/.cache/tgi-async`; None for a user without a home folder."""
    root = os.path.expanduser(os.environ.get("TGI_ASYNC_CACHE") or "~/.cache/tgi-async")
    return None if root.startswith("~") else Path(os.path.abspath(root))


def image_caches() -> list[Path]:
    """Return `$TGI_ASYNC_IMAGE_CACHE`, if it is set."""
    root = os.environ.get("TGI_ASYNC_IMAGE_CACHE")
    return [Path(os.path.abspath(root))] if root else []


def find(name: str) -> Path | None:
    """Return the file or folder `name` in the cache, the image's, or else the scratch folder, if it
    exists."""
    roots = [root for root in (cache_root(), *image_caches(), *_scratch) if root is not None]
    # Not `Path.exists`, which raises where a parent folder is not accessible.
    return next((root / name for root in roots if os.path.exists(root / name)), None)


def write(make: Callable[[Path], T]) -> tuple[T, str]:
    """Call `make` with the cache folder, or where that raises OSError with the scratch folder.

    Return its result, and why it is not in the cache, if it is not. Raises OSError, which names
    both and their reasons.
    """
    failures: list[str] = []
    for root in (cache_root(), *_scratch):
        if root is None:
            failures.append("~/.cache/tgi-async (this user has no home folder)")
            continue
        try:
            return make(root), "".join(failures)
        except OSError as error:
            failures.append(f"{root} ({error.strerror or error})")
    raise OSError(" or ".join(failures))


def is_built(name: str) -> bool:
    """Return whether the complete folder `name` is in the cache."""
    return find(name) is not None


def build_once(name: str, build: Callable[[Path], None]) -> Path:
    """Return the folder `name` in the cache, made by `build(empty_folder)` if it does not exist
    yet.

    `name` must change whenever what `build` would write changes. Raises ModelUnavailable.
    """
    if (found := find(name)) is not None:
        return found
    try:
        folder, why = write(lambda root: _build_in(root, name, build))
    except OSError as error:
        raise ModelUnavailable(f"cannot write the prepared model to {error}. {ADVICE}") from error
    if why:
        say(
            f"The prepared model is in a temporary folder, and the next start prepares it again: "
            f"it cannot be kept in {why}. {ADVICE}"
        )
    return folder


def _build_in(root: Path, name: str, build: Callable[[Path], None]) -> Path:
    folder = root / name
    root.mkdir(parents=True, exist_ok=True)
    with (root / f".{name}.lock").open("w") as lock:
        _wait_for(lock, name)
        if not folder.is_dir():
            _build(folder, build)
    return folder


def _wait_for(lock: TextIO, name: str) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say(f"Another start is preparing {name}: waiting for it")
        fcntl.flock(lock, fcntl.LOCK_EX)


def _build(folder: Path, build: Callable[[Path], None]) -> None:
    partial = folder.with_name(f".{folder.name}.partial")
    # What is there was left by a build that died: only the holder of the lock gets here.
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        build(partial)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
