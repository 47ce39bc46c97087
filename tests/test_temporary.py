"""Private folders, where the usual places for temporary files cannot be had."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tgi_async.errors import StartError
from tgi_async.temporary import LONGEST, private_folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names are short from here."""
    monkeypatch.chdir(tmp_path_factory.mktemp("t"))


def test_it_is_this_users_alone_and_ends_with_its_use() -> None:
    os.mkdir("a")
    with private_folder({"TMPDIR": "a"}) as folder:
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
    with private_folder({"TMPDIR": gone}, (place,)) as folder:
        assert os.path.dirname(folder) == place
    assert f"temporary files go to {place}, not to {gone} (" in caplog.text


def test_what_was_not_asked_for_is_not_missed(caplog: pytest.LogCaptureFixture) -> None:
    os.mkdir("run")
    with private_folder({"XDG_RUNTIME_DIR": "run"}, ("/proc/none",)) as folder:
        assert os.path.dirname(folder) == os.path.abspath("run")
    assert caplog.text == ""


def test_where_there_is_no_place_all_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/proc")
    tried = r"/proc/none \(No such file or directory\), \. \(.*\)\. Set TMPDIR to a folder"
    with pytest.raises(StartError, match=tried):
        private_folder({}, ("/proc/none",))
