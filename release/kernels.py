"""`python -m release.kernels PLATFORM FOLDER`: compile the C kernels for all processors
of a kind of machine.

Clang, out of the package `ziglang`, compiles for any machine and any version of glibc, so that one
computer makes the wheels of all.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

from workers import native, prebuilt

PLATFORM = re.compile(r"manylinux_(?P<glibc>\d+_\d+)_(?P<machine>\w+)")


def build(platform: str, folder: Path) -> None:
    """Write a library for each variant of a platform, such as `manylinux_2_28_x86_64`, to `folder`.

    Raises ValueError for one without variants, and RuntimeError without zig or where it fails.
    """
    found = PLATFORM.fullmatch(platform)
    variants = prebuilt.of_machine(found["machine"]) if found else []
    if found is None or not variants:
        machines = sorted({one.machine for one in prebuilt.VARIANTS})
        raise ValueError(
            f"there are no C kernels for the platform {platform}. Give manylinux_2_28_ and one of "
            f"{', '.join(machines)}, or build without --plat-name a wheel that has none"
        )
    target = f"{found['machine']}-linux-gnu.{found['glibc'].replace('_', '.')}"
    sources = [str(source) for source in native.SOURCES]
    folder.mkdir(parents=True, exist_ok=True)
    for variant in variants:
        name = prebuilt.library_name(variant, native.sources_key())
        print(f"compiling {name}", flush=True)
        # -w: of loops that were not vectorized, which are the compiler's to know.
        command = (*_zig(), "cc", "-target", target, *variant.options, *native.PORTABLE_FLAGS, "-w")
        options = ("-pthread", "-shared", "-s", *sources, "-lm", "-o", str(folder / name))
        done = subprocess.run((*command, *options), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"zig could not compile {name}: {done.stderr.strip()}")


def _zig() -> tuple[str, ...]:
    """Return the command of zig. Raises RuntimeError where it is not installed."""
    if importlib.util.find_spec("ziglang"):
        return (sys.executable, "-m", "ziglang")
    if found := shutil.which("zig"):
        return (found,)
    raise RuntimeError(
        "C kernels for other processors than this one are compiled by zig, which is not installed. "
        "Run `make wheel`, or pip install ziglang and build with --no-isolation"
    )


if __name__ == "__main__":
    build(sys.argv[1], Path(sys.argv[2]))
