"""Builds of the C kernels that wheels carry: one for each level of a processor's instructions.

`setup.py` compiles them, and `workers.native` loads the best one that this processor runs. A clone
has none, and compiles for its own processor.
"""

from __future__ import annotations

import platform
from pathlib import Path
from typing import NamedTuple

FOLDER = Path(__file__).parent / "libraries"
"""Where a wheel has them."""

CPUINFO = Path("/proc/cpuinfo")


class Variant(NamedTuple):
    """A build of the kernels for some processors."""

    name: str
    machine: str
    """As `platform.machine()` has it."""
    needs: frozenset[str]
    """Instructions that it uses, as /proc/cpuinfo names them."""
    options: tuple[str, ...]
    """Options of Clang that stand for them."""


_V3 = frozenset({"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"})
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
# Clang would have vectors of 512 bits taken apart, as they once slowed processors down.
_WIDE = "-mprefer-vector-width=512"

VARIANTS = (
    Variant(
        "x86_64_v4_bf16",  # Zen 4, Sapphire Rapids
        "x86_64",
        _V4 | {"avx512_bf16", "avx512_vnni", "avx512vbmi"},
        ("-mcpu=x86_64_v4+avx512bf16+avx512vnni+avx512vbmi", _WIDE),
    ),
    Variant(
        "x86_64_v4_vnni",  # Cascade Lake, Ice Lake
        "x86_64",
        _V4 | {"avx512_vnni"},
        ("-mcpu=x86_64_v4+avx512vnni", _WIDE),
    ),
    Variant("x86_64_v4", "x86_64", _V4, ("-mcpu=x86_64_v4", _WIDE)),  # Skylake's servers
    Variant("x86_64_v3", "x86_64", _V3, ("-mcpu=x86_64_v3",)),  # Haswell, Zen
    Variant("armv8_a", "aarch64", frozenset({"asimd"}), ("-mcpu=generic",)),
)
"""The fastest of a machine first."""


def of_machine(machine: str) -> list[Variant]:
    """Return the variants of a kind of machine, the fastest first."""
    return [one for one in VARIANTS if one.machine == machine]


def runnable(machine: str, instructions: frozenset[str]) -> list[Variant]:
    """Return the variants that a processor with these instructions runs, the fastest first."""
    return [one for one in of_machine(machine) if one.needs <= instructions]


def instructions_of(cpuinfo: str) -> frozenset[str]:
    """Return the instructions that every processor in the text of /proc/cpuinfo has."""
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    found = [
        frozenset(words.split())
        for name, _, words in lines
        if name.strip() in ("flags", "Features")
    ]
    return frozenset.intersection(*found) if found else frozenset()


def library_name(variant: Variant, sources: str) -> str:
    """Return the name of a variant's file, built of sources with the key `sources`."""
    return f"{variant.name}_{sources}.so"


def find(sources: str) -> Path | None:
    """Return the fastest library for this machine that was built of sources with this key.

    None where there is none: in a clone, for changed sources, and for older processors.
    """
    try:
        instructions = instructions_of(CPUINFO.read_text())
    except OSError:
        return None
    variants = runnable(platform.machine(), instructions)
    paths = (FOLDER / library_name(one, sources) for one in variants)
    return next((path for path in paths if path.is_file()), None)
