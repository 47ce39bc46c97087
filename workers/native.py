"""The kernels in C: compiled on first use, loaded through ctypes.

The sources are plain C without torch's headers, so a compiler is all they need and a build takes
some seconds. The library is kept in the cache folder under a key of all that it was made from.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from workers.models.cache import cache_root

FLAGS = (
    *("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    "-fopenmp-simd",  # only what says how a loop may be vectorized: no OpenMP threads
    "-fPIC",
)


HERE = Path(__file__).parent
SOURCES = (
    HERE / "team.c",
    HERE / "layers" / "linear.c",
    HERE / "attention" / "paged_attention.c",
    HERE / "decoder" / "decoder.c",
    HERE / "sampling" / "maxima.c",
)
"""One library, for they share a team of threads and call each other."""


class NativeUnavailable(Exception):
    """A C source cannot be compiled or loaded on this machine; the message says why."""


@functools.cache
def kernels() -> ctypes.CDLL:
    """All kernels, loaded once. Raises NativeUnavailable."""
    return load(*SOURCES)


def load(*sources: Path) -> ctypes.CDLL:
    """The library of C sources, compiled if the cache folder does not have it.

    Its functions are called without the interpreter's lock. Raises NativeUnavailable.
    """
    try:
        return ctypes.CDLL(str(_library(sources)))
    except OSError as error:
        raise NativeUnavailable(
            f"the compiled {sources[0].name} cannot be used: {error}"
        ) from error


def _library(sources: Sequence[Path]) -> Path:
    """The compiled library in the cache folder, made if it is not there yet."""
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        raise NativeUnavailable(
            "no C compiler (cc, gcc or clang) is installed. Install one (such as the package gcc)"
        )
    texts = [text for source in sources for text in _texts(source)]
    made_from = (*texts, *FLAGS, compiler, _output(compiler, "--version"), _cpu())
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    library = cache_root() / "kernels" / f"{sources[0].stem}-{key}.so"
    if library.is_file():
        return library
    library.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent, prefix=".build-") as folder:
        built = Path(folder, library.name)
        given = [str(source) for source in sources]
        _output(compiler, *FLAGS, "-pthread", "-shared", *given, "-lm", "-o", str(built))
        # Two starts may build at once; each renames a whole file, and either one is right.
        built.rename(library)
    return library


def _texts(source: Path) -> Iterator[str]:
    """The text of a source and of the headers of ours that it includes."""
    text = source.read_text()
    yield text
    for name in re.findall(r'^#include "(.+)"', text, re.MULTILINE):
        yield from _texts(source.parent / name)


def _output(*command: str) -> str:
    """What a compiler's command prints. Raises NativeUnavailable where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise NativeUnavailable(f"{command[0]} did not finish in {error.timeout:.0f} s") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or ["no message"]
        # The first line that is an error: warnings and "In file included from" may come before.
        first = next((line for line in said if "error:" in line), said[0])
        raise NativeUnavailable(f"{command[0]} failed with status {done.returncode}: {first}")
    return done.stdout


def _cpu() -> str:
    """What `-march=native` depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(names)}))
