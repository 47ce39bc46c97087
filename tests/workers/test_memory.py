from __future__ import annotations

from pathlib import Path

import pytest
import torch

from workers import memory

GIB = 2**30
CPU = torch.device("cpu")


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with 9 GiB available and no cgroup limit."""
    monkeypatch.setattr(memory, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    text = f"MemTotal: 99 kB\nMemAvailable:   {9 * 2**20} kB\nHugePages_Total: 0\n"
    (tmp_path / "meminfo").write_text(text)
    return tmp_path


def limit(machine: Path, most: str, current: int, inactive: int) -> None:
    (machine / "memory.max").write_text(f"{most}\n")
    (machine / "memory.current").write_text(f"{current}\n")
    (machine / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\nactive_file 7\n")


def test_a_machine_without_limits_has_what_is_available(machine: Path) -> None:
    assert memory.available_on_cpu() == 9 * GIB


@pytest.mark.parametrize(
    ("most", "current", "inactive", "free"),
    [
        ("max", 5 * GIB, 0, 9 * GIB),
        (str(8 * GIB), 5 * GIB, 0, 3 * GIB),
        (str(8 * GIB), 5 * GIB, 2 * GIB, 5 * GIB),
        (str(80 * GIB), 5 * GIB, 0, 9 * GIB),
        (str(4 * GIB), 5 * GIB, 0, 0),
    ],
)
def test_a_container_has_what_its_limit_leaves_and_files_can_give_way(
    machine: Path, most: str, current: int, inactive: int, free: int
) -> None:
    limit(machine, most, current, inactive)
    assert memory.available_on_cpu() == free


def test_where_the_machine_does_not_tell_the_most_is_assumed(machine: Path) -> None:
    (machine / "meminfo").unlink()
    assert memory.for_cache(CPU) == 4 * GIB


def test_the_cache_takes_a_third_and_at_most_4_gib(machine: Path) -> None:
    assert memory.for_cache(CPU) == 3 * GIB
    (machine / "meminfo").write_text(f"MemAvailable: {90 * 2**20} kB\n")
    assert memory.for_cache(CPU) == 4 * GIB


def test_this_machine_tells() -> None:
    assert memory.available_on_cpu() > 0


def test_of_a_gpu_a_tenth_stays_free_and_what_others_are_to_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (60 * GIB, 100 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 9 * GIB)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 5 * GIB)
    gpu = torch.device("cuda")
    assert memory.for_cache(gpu) == pytest.approx(54 * GIB)
    assert memory.for_cache(gpu, 0.5) == pytest.approx(9 * GIB)
