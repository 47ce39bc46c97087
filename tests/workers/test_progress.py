from __future__ import annotations

import sys
import threading

import pytest

from workers.progress import reports, size, track


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(0, "0.0 kB"), (1234, "1.2 kB"), (98_362_432, "98.4 MB"), (5_000_000_000, "5.0 GB")],
)
def test_sizes_are_for_people(n_bytes: int, text: str) -> None:
    assert size(n_bytes) == text


def test_a_log_file_gets_one_plain_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track("abc", 3, "Counting")) == ["a", "b", "c"]

    assert capsys.readouterr().err == "Counting\n"


def test_a_terminal_gets_a_bar_that_fills(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    assert list(track("abc", 3, "Counting")) == ["a", "b", "c"]

    drawn = capsys.readouterr().err.split("\r")
    assert [line.count("█") for line in drawn] == [0, 10, 20, 30]
    assert drawn[-1].endswith("3/3\n")


def test_a_long_wait_is_reported_until_it_ends(capsys: pytest.CaptureFixture[str]) -> None:
    before = threading.enumerate()
    reported = threading.Event()

    def line() -> str:
        reported.set()
        return "still here"

    with reports(line, every=0.001):
        assert reported.wait(10)

    assert capsys.readouterr().err.startswith("still here\n")
    assert threading.enumerate() == before
