"""Control groups of this machine's kernel."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path("/sys/fs/cgroup")


@contextmanager
def limited_groups(memory: str, cpus: float) -> Iterator[list[Path]]:
    """Groups of so much memory, such as 700M, and processors' time; a process is to enter all of
    them. Skips the test where they cannot be made."""
    quota = int(cpus * 100_000)
    if (ROOT / "cgroup.controllers").exists():
        limits = {ROOT: {"memory.max": memory, "cpu.max": f"{quota} 100000"}}
    else:
        limits = {
            ROOT / "memory": {"memory.limit_in_bytes": memory},
            ROOT / "cpu": {"cpu.cfs_quota_us": str(quota)},
        }
    name = f"tgi-async-test-{uuid.uuid4().hex}"
    made = [root / name for root in limits]
    try:
        try:
            for group, files in zip(made, limits.values(), strict=True):
                group.mkdir()
                for file, value in files.items():
                    (group / file).write_text(value)
        except OSError as error:
            pytest.skip(f"no control groups can be made here: {error}")
        yield made
    finally:
        for group in filter(Path.is_dir, made):
            _remove(group)


def _remove(group: Path, seconds: float = 10.0) -> None:
    """Once those who were in it are gone."""
    deadline = time.monotonic() + seconds
    while (group / "cgroup.procs").read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    group.rmdir()
