from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from tgi_async import cgroups
from tgi_async.cgroups import MemoryLimit
from workers import memory

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 9 GiB available, 1 GiB of free swap and no limits."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(cgroups, "memory_limits", list)
    monkeypatch.setattr(resource, "getrlimit", lambda limit: (resource.RLIM_INFINITY,) * 2)
    text = f"MemTotal: 99 kB\nMemAvailable:   {9 * 2**20} kB\nSwapFree: {2**20} kB\n"
    (tmp_path / "meminfo").write_text(text)
    return tmp_path


def limit(monkeypatch: pytest.MonkeyPatch, *limits: MemoryLimit) -> None:
    monkeypatch.setattr(cgroups, "memory_limits", lambda: list(limits))


def test_a_machine_without_limits_has_what_is_available(machine: Path) -> None:
    assert memory.room_on_cpu() == (9 * GIB, "this machine has 9.66 GB available")
    assert memory.room_on_cpu(swap=True).size == 10 * GIB


def test_a_group_has_what_its_limit_leaves(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loose = MemoryLimit(Path("/a"), 80 * GIB, 5 * GIB, 0)
    limit(monkeypatch, loose)
    assert memory.room_on_cpu().size == 9 * GIB
    limit(monkeypatch, loose, MemoryLimit(Path("/a/b"), 8 * GIB, 5 * GIB, GIB))
    room = memory.room_on_cpu()
    assert room.size == 4 * GIB
    assert room.because == (
        "the control group /a/b is limited to 8.59 GB, of which 4.29 GB are taken"
    )
    limit(monkeypatch, MemoryLimit(Path("/a/b"), 4 * GIB, 5 * GIB, 0))
    assert memory.room_on_cpu().size == 0


@pytest.mark.parametrize(
    ("which", "at", "name"), [(resource.RLIMIT_AS, 0, "-v"), (resource.RLIMIT_DATA, 5, "-d")]
)
def test_a_process_has_what_its_own_limit_leaves(
    machine: Path, monkeypatch: pytest.MonkeyPatch, which: int, at: int, name: str
) -> None:
    limits = {which: (4 * GIB, 5 * GIB)}
    everything = (resource.RLIM_INFINITY,) * 2
    monkeypatch.setattr(resource, "getrlimit", lambda one: limits.get(one, everything))
    pages = [1] * 7
    pages[at] = GIB // resource.getpagesize()
    (machine / "statm").write_text(" ".join(map(str, pages)))
    monkeypatch.setattr(memory, "STATM", machine / "statm")
    room = memory.room_on_cpu()
    assert room.size == 3 * GIB
    assert room.because.startswith(f"`ulimit {name}` leaves each process 4.29 GB")


def test_where_the_machine_does_not_tell_the_most_is_assumed(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.for_cache(CPU) == 4 * GIB


def test_the_cache_takes_a_third_and_at_most_4_gib(machine: Path) -> None:
    assert memory.for_cache(CPU) == 3 * GIB
    (machine / "meminfo").write_text(f"MemAvailable: {90 * 2**20} kB\n")
    assert memory.for_cache(CPU) == 4 * GIB


@pytest.mark.parametrize(("free", "cache"), [(384, 128), (300, 44), (256, 0), (100, 0)])
def test_the_cache_leaves_what_other_processes_of_the_server_will_take(
    machine: Path, free: int, cache: int
) -> None:
    (machine / "meminfo").write_text(f"MemAvailable: {free * 2**10} kB\n")
    assert memory.for_cache(CPU) == cache * 2**20


def test_this_machine_tells() -> None:
    assert memory.room_on_cpu().size > 0


def test_of_a_gpu_a_tenth_stays_free_and_what_others_are_to_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 100 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * GIB)
    gpu = torch.device("cuda")
    assert memory.for_cache(gpu) == pytest.approx(54 * GIB)
    assert memory.for_cache(gpu, 0.5) == pytest.approx(9 * GIB)
