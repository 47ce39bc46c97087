from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from workers import build_cache as module
from workers.build_cache import build_once, cache_root, can_write, is_built, use_scratch
from workers.errors import ModelUnavailable


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


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A scratch folder in use, as by the processes of a server."""
    monkeypatch.setattr(module, "_scratch", [])
    for name in ("HF_MODULES_CACHE", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    use_scratch(tmp_path / "scratch")
    return tmp_path / "scratch"


def test_what_the_cache_cannot_take_goes_to_the_scratch_folder(
    cache: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache.write_text("a file where the folder should be")

    folder = build_once("a", writing("x"))

    assert folder.is_relative_to(scratch)
    assert (folder / "file").read_text() == "x"
    assert f"it cannot be kept in {cache} (File exists)" in capsys.readouterr().err
    assert build_once("a", writing("again")) == folder
    assert (folder / "file").read_text() == "x"


def test_what_is_in_a_cache_that_cannot_be_written_is_used(
    cache: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_once("a", writing("x"))
    monkeypatch.setattr(module, "_build_in", lambda *_: pytest.fail("it is built again"))

    assert build_once("a", writing("x")) == folder == cache / "a"


def test_a_build_for_which_the_cache_has_no_room_is_made_in_the_scratch_folder(
    cache: Path, scratch: Path
) -> None:
    def build(folder: Path) -> None:
        (folder / "half").write_text("half")
        if folder.is_relative_to(cache):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder = build_once("a", build)

    assert folder.is_relative_to(scratch)
    assert [entry.name for entry in cache.iterdir()] == [".a.lock"]


def test_where_neither_takes_it_both_are_named(cache: Path, scratch: Path) -> None:
    cache.write_text("a file")
    scratch.write_text("a file")

    both = rf"{cache} \(File exists\) or {scratch}/cache \(Not a directory\)"
    with pytest.raises(ModelUnavailable, match=both):
        build_once("a", writing("x"))


def test_a_user_without_a_home_has_no_cache(
    scratch: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("TGI_ASYNC_CACHE")
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    monkeypatch.chdir(tmp_path)

    assert cache_root() is None
    assert build_once("a", writing("x")).is_relative_to(scratch)
    assert not (tmp_path / "~").exists()


def test_libraries_that_write_at_home_are_sent_elsewhere_where_they_cannot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_scratch", [])
    for name in ("HF_HOME", "XDG_CACHE_HOME", "HF_MODULES_CACHE", "TRITON_CACHE_DIR"):
        monkeypatch.setenv(name, "to be put back")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    use_scratch(tmp_path / "scratch")
    assert "TRITON_CACHE_DIR" not in os.environ

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    use_scratch(tmp_path / "scratch")
    assert Path(os.environ["TRITON_CACHE_DIR"]).is_relative_to(tmp_path / "scratch")
    assert Path(os.environ["HF_MODULES_CACHE"]).is_relative_to(tmp_path / "scratch")


def test_folders_that_can_be_written_or_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    assert can_write(str(tmp_path))
    assert can_write(str(tmp_path / "a" / "b"))
    for path in (tmp_path / "file", tmp_path / "file" / "a", tmp_path / "nowhere"):
        assert not can_write(str(path))
    assert not can_write("~/.cache")


def test_what_an_image_brings_is_used_and_not_written_to(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as building:
        building.setenv("TGI_ASYNC_CACHE", str(tmp_path / "image"))
        of_image = build_once("a", writing("the image's"))
    monkeypatch.setenv("TGI_ASYNC_IMAGE_CACHE", str(tmp_path / "image"))

    assert build_once("a", writing("another")) == of_image
    assert build_once("b", writing("own")) == cache / "b"
    assert not (tmp_path / "image" / "b").exists()
