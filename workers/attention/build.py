"""The C kernel's library: compiled on first use, kept in the cache folder.

It is plain C without torch's headers, so a compiler is all it needs, and a build takes about two
seconds. The library's name is a key of all that it was made from. It is linked against the OpenMP
runtime that torch has already loaded: one pool of threads serves both, waiting as
`OMP_WAIT_POLICY` says.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

from workers.models.cache import cache_root

SOURCE = Path(__file__).with_name("paged_attention.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC")
COMPILERS = ("cc", "gcc", "clang")


class KernelUnavailable(Exception):
    """The kernel cannot be had on this machine; the message says why."""


def library() -> Path:
    """The compiled library, made if it is not there yet.

    torch must have been imported. Raises KernelUnavailable or OSError.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelUnavailable("no C compiler (cc, gcc or clang) is installed")
    openmp = _loaded_openmp()
    made_from = (
        SOURCE.read_text(),
        *FLAGS,
        compiler,
        _output(compiler, "--version"),
        openmp,
        _cpu(),
    )
    key = hashlib.sha256("\0".join(made_from).encode()).hexdigest()[:16]
    made = cache_root() / "kernels" / f"paged_attention-{key}.so"
    if made.is_file():
        return made
    made.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=made.parent, prefix=".build-") as folder:
        compiled, linked = Path(folder, "kernel.o"), Path(folder, "kernel.so")
        _output(compiler, *FLAGS, "-fopenmp", "-c", str(SOURCE), "-o", str(compiled))
        _output(compiler, "-shared", str(compiled), openmp, "-lm", "-o", str(linked))
        # Two starts may build at once; each renames a whole file, and either one is right.
        linked.rename(made)
    return made


def _output(*command: str) -> str:
    """What a compiler's command prints. Raises KernelUnavailable where it fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired as error:
        raise KernelUnavailable(f"{command[0]} did not finish in {error.timeout:.0f} s") from error
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["no message"])[0]
        raise KernelUnavailable(f"{command[0]} failed with status {done.returncode}: {said}")
    return done.stdout


def _loaded_openmp() -> str:
    """Path of the OpenMP runtime that torch brought into this process."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.split(maxsplit=5)[-1]
        if Path(path).name.startswith("libgomp"):
            return path
    raise KernelUnavailable("torch has not loaded an OpenMP runtime (libgomp) to share")


def _cpu() -> str:
    """What `-march=native` depends on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = ("model name", "flags", "Features", "CPU part")
    return platform.machine() + "".join(sorted({x for x in lines if x.startswith(names)}))
