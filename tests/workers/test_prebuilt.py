"""Which of the wheel's kernels a processor gets."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from workers import prebuilt

V3 = "fpu sse4_2 avx avx2 fma bmi1 bmi2 f16c movbe abm"
V4 = f"{V3} avx512f avx512bw avx512cd avx512dq avx512vl"
PROCESSORS = {
    "Ivy Bridge": ("fpu sse4_2 avx f16c", None),
    "Zen 3": (V3, "x86_64_v3"),
    "Skylake-SP": (V4, "x86_64_v4"),
    "Ice Lake": (f"{V4} avx512_vnni avx512vbmi gfni", "x86_64_v4_vnni"),
    "Cooper Lake": (f"{V4} avx512_vnni avx512_bf16", "x86_64_v4_vnni"),
    "Zen 4": (f"{V4} avx512_vnni avx512vbmi avx512_bf16", "x86_64_v4_bf16"),
    "without AVX-512, as a hypervisor may show it": (f"{V3} avx_vnni", "x86_64_v3"),
}


def x86(flags: str) -> str:
    return f"processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: {flags}\nbugs\t\t: avx512_bf16\n\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Libraries of all variants, built of the sources "key"."""
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "libraries")
    (tmp_path / "libraries").mkdir()
    for one in prebuilt.VARIANTS:
        (tmp_path / "libraries" / prebuilt.library_name(one, "key")).touch()
    return tmp_path / "libraries"


def on(cpuinfo: str, machine: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The name of the library that a machine gets."""
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(prebuilt, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr("platform.machine", lambda: machine)
    found = prebuilt.find("key")
    return found.name if found else None


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_a_processor_gets_the_fastest_that_it_runs(
    processor: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags, expected = PROCESSORS[processor]
    name = on(x86(flags) * 2, "x86_64", tmp_path, monkeypatch)
    assert name == (f"{expected}_key.so" if expected else None)


@pytest.mark.usefixtures("folder")
def test_an_arm_processor_gets_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = "processor\t: 0\nFeatures\t: fp asimd evtstrm bf16\nCPU part\t: 0xd4f\n"
    assert on(cpuinfo, "aarch64", tmp_path, monkeypatch) == "armv8_a_key.so"


@pytest.mark.usefixtures("folder")
def test_of_unlike_processors_all_must_run_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on(x86(V4) + x86(V3), "x86_64", tmp_path, monkeypatch) == "x86_64_v3_key.so"


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("cpuinfo", ["", "processor\t: 0\n"])
def test_a_processor_that_does_not_say_what_it_has_gets_none(
    cpuinfo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert on(cpuinfo, "x86_64", tmp_path, monkeypatch) is None
    monkeypatch.setattr(prebuilt, "CPUINFO", tmp_path / "none")
    assert prebuilt.find("key") is None


def test_the_next_one_is_taken_where_the_fastest_is_missing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "x86_64_v4_key.so").unlink()
    assert on(x86(V4), "x86_64", tmp_path, monkeypatch) == "x86_64_v3_key.so"


@pytest.mark.usefixtures("folder")
def test_a_library_of_other_sources_is_not_taken() -> None:
    assert prebuilt.find("changed") is None


def test_each_variant_of_a_machine_needs_what_slower_ones_need() -> None:
    for machine in ("x86_64", "aarch64"):
        variants = prebuilt.of_machine(machine)
        assert variants
        for faster, slower in pairwise(variants):
            assert faster.needs > slower.needs
