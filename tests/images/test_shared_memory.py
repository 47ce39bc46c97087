from __future__ import annotations

import os
import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from tgi_async import cgroups, temporary
from tgi_async.cgroups import MemoryLimit
from tgi_async.images import shared_memory
from tgi_async.images.shared_memory import default_bytes, folder_in


@pytest.fixture
def scratch(tmp_path: Path) -> str:
    (tmp_path / "s").mkdir()
    return str(tmp_path / "s")


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> str:
    """In place of shared memory; its name is short from here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("t"))
    os.mkdir("shm")
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", "shm")
    return "shm"


def test_shared_memory_is_used_and_left_empty(scratch: str, shared: str) -> None:
    with ExitStack() as closing:
        folder = folder_in(scratch, closing)
        assert os.path.dirname(folder) == os.path.abspath(shared)
        assert os.stat(folder).st_mode & 0o777 == 0o700
        Path(folder, "file").write_text("x")
        assert os.listdir(scratch) == []
    assert os.listdir(shared) == []


def test_where_shared_memory_is_small_the_servers_folder_is_used(
    scratch: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_memory, "LEAST", 1 << 60)
    with ExitStack() as closing:
        folder = folder_in(scratch, closing)
        assert folder == f"{scratch}/images"
        Path(folder, "file").write_text("x")
        assert os.listdir(shared) == []
    assert os.listdir(scratch) == []


@pytest.mark.parametrize("gone", ["missing", "file", "/proc"])
def test_where_there_is_no_shared_memory_too(
    scratch: str, shared: str, gone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("file").write_text("")
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", gone)
    with ExitStack() as closing:
        assert folder_in(scratch, closing) == f"{scratch}/images"
    assert sorted(os.listdir()) == ["file", "shm"]


def test_what_a_killed_server_left_in_shared_memory_is_removed(
    scratch: str, shared: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "NEW_SECONDS", -1.0)
    with ExitStack() as closing:
        left = f"{folder_in(scratch, closing)}x"
        os.mkdir(left)
        Path(left, "0").write_bytes(bytes(1000))
        with ExitStack() as other:
            folder_in(scratch, other)
            assert not os.path.exists(left)
            assert len(os.listdir(shared)) == 2  # the other server lives


GIB = 1 << 30


@pytest.mark.parametrize(
    ("available", "group", "free", "expected"),
    [
        (64, None, 32, 2 * GIB),
        (8, None, 32, GIB),
        (64, 4, 32, GIB // 2),
        (64, None, 2, GIB),
        (None, None, 32, 2 * GIB),
    ],
)
def test_the_default_leaves_memory_to_others(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    available: int | None,
    group: int | None,
    free: int,
    expected: int,
) -> None:
    limits = [] if group is None else [MemoryLimit(tmp_path, 9 * GIB, (9 - group) * GIB, 0)]
    monkeypatch.setattr(cgroups, "memory_limits", lambda: limits)
    monkeypatch.setattr(
        shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9 * GIB, 0, free * GIB)
    )
    meminfo = tmp_path / "meminfo"
    text = "" if available is None else f"MemAvailable:   {available * GIB // 1024} kB\n"
    meminfo.write_text(f"MemTotal: 1 kB\n{text}Buffers: 0 kB\n")
    assert default_bytes(str(tmp_path), meminfo) == expected
    meminfo.unlink()
    assert default_bytes(str(tmp_path), meminfo) >= expected
