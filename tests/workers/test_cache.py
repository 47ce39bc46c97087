from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from workers.models.cache import build_once, cache_root, is_built
from workers.models.errors import ModelUnavailable


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TGI_ASYNC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def writing(text: str) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "file").write_text(text)

    return build


def test_the_cache_is_in_the_home_folder_unless_the_environment_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TGI_ASYNC_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))

    assert cache_root() == tmp_path / ".cache" / "tgi-async"


def test_a_folder_is_built_once() -> None:
    first = build_once("a", writing("first"))
    second = build_once("a", writing("second"))

    assert first == second
    assert (second / "file").read_text() == "first"


def test_a_build_that_failed_is_not_used(cache: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise RuntimeError("the power went")

    with pytest.raises(RuntimeError):
        build_once("a", fail)
    assert not is_built("a")

    folder = build_once("a", writing("whole"))
    assert [entry.name for entry in folder.iterdir()] == ["file"]


def test_what_a_killed_build_left_is_not_used(cache: Path) -> None:
    (cache / ".a.partial").mkdir(parents=True)
    (cache / ".a.partial" / "half").write_text("half")

    folder = build_once("a", writing("whole"))

    assert [entry.name for entry in folder.iterdir()] == ["file"]


def test_of_builders_at_the_same_time_one_builds_and_all_get_its_folder() -> None:
    started = threading.Event()
    release = threading.Event()
    builds: list[int] = []
    folders: list[Path] = []

    def build(folder: Path) -> None:
        builds.append(1)
        started.set()
        assert release.wait(10)
        (folder / "file").write_text("whole")

    threads = [
        threading.Thread(target=lambda: folders.append(build_once("a", build))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert started.wait(10)
    assert not is_built("a")
    release.set()
    for thread in threads:
        thread.join()

    assert builds == [1]
    assert len(folders) == 3
    assert len(set(folders)) == 1


def test_a_cache_that_cannot_be_written_is_named(cache: Path) -> None:
    cache.write_text("a file where the folder should be")

    with pytest.raises(ModelUnavailable, match="Set TGI_ASYNC_CACHE to a folder"):
        build_once("a", writing("x"))
