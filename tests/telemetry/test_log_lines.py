"""A log that nobody reads holds up nobody."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

import pytest

from tgi_async.telemetry import log_lines, logs
from tgi_async.telemetry.log_lines import LogLines

LINE = "x" * 5000


class Pipe:
    """A log that is a pipe, and its reader."""

    def __init__(self) -> None:
        self._reader, self.writer = os.pipe()
        self.lines = LogLines(self.writer)
        self.said: list[str] = []

    def say(self, *texts: str) -> None:
        for text in texts:
            self.lines.handle(logging.LogRecord("x", logging.INFO, "", 0, text, (), None))

    def fill(self) -> None:
        """Leave no room in the pipe."""
        os.set_blocking(self.writer, False)
        try:
            while True:
                os.write(self.writer, b"\n" * log_lines.PIECE)
        except BlockingIOError:
            os.set_blocking(self.writer, True)

    def read(self, last: str) -> list[str]:
        """The lines up to one that ends like this."""
        found = b""
        while not found.endswith(last.encode() + b"\n"):
            found += os.read(self._reader, 65_536)
        return found.decode().strip("\n").split("\n")

    def close(self) -> None:
        for fd in (self._reader, self.writer):
            os.close(fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


def test_a_line_is_written_at_once(pipe: Pipe) -> None:
    pipe.say("one", "two ü \ud800")
    assert pipe.read("\\ud800") == ["one", "two ü \\ud800"]
    assert pipe.lines._thread is None


def test_lines_that_nobody_reads_wait_in_order_and_hold_up_nobody(pipe: Pipe) -> None:
    pipe.fill()
    texts = [f"{number} {LINE}" for number in range(20)]
    pipe.say(*texts)
    assert pipe.read(texts[-1]) == texts
    pipe.lines.flush()
    pipe.say("later")
    assert pipe.read("later") == ["later"]


def test_what_is_too_much_is_dropped_and_counted(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "MOST_WAITING", 12_000)
    pipe.fill()
    pipe.say(f"0 {LINE}", f"1 {LINE}", f"2 {LINE}", f"3 {LINE}")
    assert pipe.read(f"1 {LINE}") == [f"0 {LINE}", f"1 {LINE}"]
    pipe.lines.flush()
    pipe.say("later")
    assert pipe.read("later") == [
        "lines of the log are missing here, 2: they could not be written",
        "later",
    ]


def test_the_end_of_the_process_does_not_wait_for_a_reader_who_is_gone(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_lines, "LAST_SECONDS", 0.01)
    pipe.fill()
    pipe.say("one")
    pipe.lines.flush()
    assert pipe.read("one") == ["one"]


def test_lines_that_a_full_disk_does_not_take_are_counted(pipe: Pipe) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    within = os.dup(pipe.writer)
    os.dup2(full, pipe.writer)
    pipe.say("one", "two", "three")
    os.dup2(within, pipe.writer)
    pipe.say("four")
    for fd in (full, within):
        os.close(fd)
    assert pipe.read("four") == [
        "lines of the log are missing here, 3: they could not be written",
        "four",
    ]


def test_the_log_of_a_server_is_written_so(pipe: Pipe, monkeypatch: pytest.MonkeyPatch) -> None:
    root = logging.getLogger()
    level, uvicorn = root.level, logging.getLogger("uvicorn").level
    with open(os.dup(pipe.writer), "w") as stderr:
        monkeypatch.setattr("sys.stderr", stderr)
        logs.configure(json_output=False)
        pipe.fill()
        logging.getLogger("tgi_async.x").info("first")
        logging.getLogger("tgi_async.x").info("last")
        found = pipe.read("last")
        root.handlers.clear()
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(uvicorn)
    assert [line.rpartition(" ")[2] for line in found] == ["first", "last"]
