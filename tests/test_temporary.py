"""Private folders, where the usual places for temporary files cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tgi_async import temporary
from tgi_async.errors import StartError
from tgi_async.temporary import LONGEST, PrivateFolder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are short from here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("t"))


def test_it_is_this_users_alone_and_ends_with_its_use() -> None:
    os.mkdir("a")
    with PrivateFolder({"TMPDIR": "a"}) as folder:
        assert os.path.dirname(folder) == os.path.abspath("a")
        assert os.stat(folder).st_mode & 0o777 == 0o700
        Path(folder, "file").write_text("x")
    assert os.listdir("a") == []


@pytest.mark.parametrize("gone", ["file/a", "missing", "x" * LONGEST])
def test_the_next_place_is_taken_and_said(gone: str, caplog: pytest.LogCaptureFixture) -> None:
    Path("file").write_text("")
    os.mkdir("x" * LONGEST)
    os.mkdir("b")
    place = os.path.abspath("b")
    with PrivateFolder({"TMPDIR": gone}, (place,)) as folder:
        assert os.path.dirname(folder) == place
    assert f"temporary files go to {place}, not to {gone} (" in caplog.text


def test_what_was_not_asked_for_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    os.mkdir("run")
    with PrivateFolder({"XDG_RUNTIME_DIR": "run"}, ("/proc/none",)) as folder:
        assert os.path.dirname(folder) == os.path.abspath("run")
    assert caplog.text == ""


@pytest.fixture
def left_behind(monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder as a server left it that was killed."""
    monkeypatch.setattr(temporary, "NEW_SECONDS", -1.0)
    os.mkdir("a")
    folder = PrivateFolder({"TMPDIR": "a"})
    Path(folder.name, "model").write_text("large")
    shutil.copytree(folder.name, f"{folder.name}x")
    folder.cleanup()
    return f"{folder.name}x"


def test_what_a_killed_server_left_is_removed(left_behind: str) -> None:
    with PrivateFolder({"TMPDIR": "a"}) as folder:
        assert os.listdir("a") == [os.path.basename(folder)]


def test_what_is_not_a_killed_servers_stays(left_behind: str) -> None:
    os.mkdir("a/tgi-async")
    Path("a/tgi-async.txt").write_text("")
    os.symlink(left_behind, "a/tgi-async.link")
    script = (
        "from tgi_async.temporary import PrivateFolder\n"
        "with PrivateFolder({'TMPDIR': 'a'}) as folder: print(folder, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as living:
        assert living.stdout is not None
        other = living.stdout.readline().strip()
        with PrivateFolder({"TMPDIR": "a"}) as folder:
            names = {"tgi-async", "tgi-async.txt", "tgi-async.link"}
            assert set(os.listdir("a")) == names | set(map(os.path.basename, (folder, other)))
        living.communicate("\n")
    assert living.returncode == 0


def test_a_folder_that_was_just_made_may_be_about_to_be_locked(
    left_behind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary, "NEW_SECONDS", 60.0)
    with PrivateFolder({"TMPDIR": "a"}):
        assert os.path.isdir(left_behind)


def test_where_there_is_no_place_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    tried = r"/proc/none \(No such file or directory\), \. \(.*\)\. Set TMPDIR to a folder"
    with pytest.raises(StartError, match=tried):
        PrivateFolder({}, ("/proc/none",))
