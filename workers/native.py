"""The C kernels, loaded through ctypes: those that the wheel carries, or compiled on first use.

The sources are plain C without torch's headers, so a compiler is all they need and a build takes
some seconds. The library is kept in the cache folder under a key of all that it was made from.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from workers import build_cache, prebuilt

PORTABLE_FLAGS = (
    *("-std=gnu11", "-O3", "-fno-math-errno", "-fno-trapping-math"),
    "-fopenmp-simd",  # only how loops may be vectorized: no OpenMP threads
    "-fPIC",
)
"""Options for any processor."""

FLAGS = (*PORTABLE_FLAGS, "-march=native")


HERE = Path(__file__).parent
SOURCES = (
    HERE / "team.c",
    HERE / "kernels" / "linear.c",
    HERE / "kernels" / "pack.c",
    HERE / "attention" / "paged_attention.c",
    HERE / "decoder" / "decoder.c",
    HERE / "sampling" / "argmax.c",
    HERE / "sampling" / "draw.c",
)
"""Sources of one library, as they share a thread pool and call each other."""


ADVICE = "Set TGI_ASYNC_CACHE to a folder that is writable, has space and is not mounted noexec."

notes: list[str] = []
"""Notes on what was given up for the libraries that were loaded."""

COMPILE_SECONDS = 600
"""Most seconds that a compiler may take: some 10 alone, minutes on a busy machine."""

_prefer_compiled = False


class NativeUnavailable(Exception):
    """A C source cannot be compiled or loaded on this machine; the message says why."""


def kernels() -> ctypes.CDLL:
    """Return all kernels, loaded once. Raises NativeUnavailable."""
    found = _found()
    if isinstance(found, NativeUnavailable):
        raise NativeUnavailable(str(found))
    return found


def prefer_compiled() -> None:
    """Let kernels be compiled for this very processor, where a compiler is, rather than load those
    that the wheel carries. It counts from the first call of `kernels` on."""
    global _prefer_compiled
    _prefer_compiled = True


@functools.cache
def _found() -> ctypes.CDLL | NativeUnavailable:
    """Load once and remember a failure: each layer of a model asks, and a failing compiler takes
    time."""
    if not _prefer_compiled and (carried := _carried()) is not None:
        return carried
    try:
        return load(*SOURCES)
    except NativeUnavailable as error:
        if _prefer_compiled and (carried := _carried()) is not None:
            notes.append(f"--native-kernels: {error}. The kernels of the package are used")
            return carried
        return error


def _carried() -> ctypes.CDLL | None:
    """Return the library that the wheel carries for this processor, or None."""
    path = prebuilt.find(sources_key())
    if path is None:
        return None
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        notes.append(f"the C kernels of the package cannot be loaded: {error}")
        return None


def sources_key() -> str:
    """Return a key of the sources, so that a library is never used with others than its own."""
    return _key(*(text for source in SOURCES for text in _texts(source)))


def load(*sources: Path) -> ctypes.CDLL:
    """Return the library of C sources, compiled if the cache folder does not have it.

    Its functions are called without the interpreter's lock. Raises NativeUnavailable.
    """
    try:
        library, why = build_cache.write(lambda root: _loaded(root, sources))
    except OSError as error:
        raise NativeUnavailable(
            f"the compiled {sources[0].name} cannot be kept in, or loaded from, {error}. {ADVICE}"
        ) from error
    if why:
        notes.append(
            f"the C kernels were compiled for this run alone, as they cannot be kept in, or loaded "
            f"from, {why}. {ADVICE}"
        )
    return library


def _loaded(root: Path, sources: Sequence[Path]) -> ctypes.CDLL:
    """Return the library in the folder `root`, compiled if it does not exist yet. Raises OSError
    where it cannot be written there or loaded from there, and NativeUnavailable."""
    texts = [text for source in sources for text in _texts(source)]
    stem = f"{sources[0].stem}-{_key(*texts, *FLAGS, _cpu())}"
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    folders = [place / "kernels" for place in (*build_cache.image_caches(), root)]
    if compiler is None:
        # One that was compiled elsewhere will do, such as in the build stage of an image.
        for found in (one for folder in folders for one in sorted(folder.glob(f"{stem}-*.so"))):
            return ctypes.CDLL(str(found))
        raise NativeUnavailable(
            "no C compiler (cc, gcc or clang) is installed. Install one (such as the package gcc)"
        )
    name = f"{stem}-{_key(compiler, _output(compiler, '--version'))}.so"
    for folder in folders:
        if os.path.isfile(folder / name):
            return ctypes.CDLL(str(folder / name))
    library = root / "kernels" / name
    _compile(compiler, sources, library)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, sources: Sequence[Path], library: Path) -> None:
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        built = Path(folder, library.name)
        given = [str(source) for source in sources]
        options = ("-pthread", "-shared", *given, "-lm", "-o", str(built))
        _output(compiler, *FLAGS, *options, temporary=folder)
        # Two starts may build at once; each renames a whole file, and either one is right.
        built.rename(library)


def _key(*made_from: str) -> str:
    return hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]


def _texts(source: Path) -> Iterator[str]:
    """Return the text of a source and of our headers that it includes."""
    text = source.read_text()
    yield text
    for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
        yield from _texts(source.parent / name)


def _output(*command: str, temporary: str | None = None) -> str:
    """Return what a compiler's command prints; its own files go to the folder `temporary`.

    Raises NativeUnavailable where it fails, OSError where it has no room.
    """
    variables = {"TMPDIR": temporary} if temporary else {}
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=COMPILE_SECONDS,
            env=os.environ | variables,
        )
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{command[0]} did not finish in {error.timeout:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        # The first line that is an error: warnings and "In file included from" may come before.
        first = next((line for line in said if "error:" in line), said[0])
        if os.strerror(errno.ENOSPC) in done.stderr:
            raise OSError(errno.ENOSPC, first)
        raise NativeUnavailable(f"{command[0]} failed with status {done.returncode}: {first}")
    return done.stdout


def _cpu() -> str:
    """Return what `-march=native` depends on. Raises NativeUnavailable."""
    try:
        lines = prebuilt.CPUINFO.read_text().splitlines()
    except OSError as error:
        raise NativeUnavailable(f"the kind of processor is not known: {error}") from error
    names = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(names)}))
