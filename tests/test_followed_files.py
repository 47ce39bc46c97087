"""Files that are followed: what happens where they cannot be read."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from pathlib import Path

import pytest

from tests.api.waiting import until
from tgi_async import followed_files
from tgi_async.followed_files import FollowedFiles


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(followed_files, "RELOAD_SECONDS", 0.01)


async def test_a_pipe_in_the_place_of_a_file_is_not_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("one")
    files = FollowedFiles([str(path)], path.read_text, name="it", then="all is well")
    following = asyncio.create_task(files.follow())
    path.unlink()
    os.mkfifo(path)
    await until(lambda: "is not a regular file any more" in caplog.text)
    assert files.current == "one"
    path.unlink()
    path.write_text("two")
    await until(lambda: files.current == "two")
    following.cancel()


def test_the_end_does_not_wait_for_a_file_system_that_does_not_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = tmp_path / "file"
    path.write_text("one")
    reading, answered = threading.Event(), threading.Event()

    def load() -> str:
        if path.read_text() != "one":
            reading.set()
            answered.wait()
        return path.read_text()

    async def serve() -> None:
        files = FollowedFiles([str(path)], load, name="it", then="all is well")
        following = asyncio.create_task(files.follow())
        path.write_text("another")
        await until(reading.is_set)
        following.cancel()

    asyncio.run(serve())
    answered.set()
    assert "all is well" not in caplog.text
