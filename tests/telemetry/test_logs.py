from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tgi_async.telemetry import logs

Err = Callable[[], str]


@pytest.fixture
def err(capsys: pytest.CaptureFixture[str]) -> Iterator[Err]:
    """What was logged since the last call; logging is as it was afterwards."""
    root = logging.getLogger()
    level, uvicorn = root.level, logging.getLogger("uvicorn").level
    yield lambda: capsys.readouterr().err
    root.handlers.clear()
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(uvicorn)


def test_a_line_an_event_for_people(err: Err) -> None:
    logs.configure(json_output=False)
    logging.getLogger("tgi_async.x").info("%d tokens", 7)
    logging.getLogger("tgi_async.x").debug("nobody sees this")
    line = err()
    assert line.endswith("INFO 7 tokens\n")
    assert line.count("\n") == 1


def test_an_object_an_event_as_json(err: Err) -> None:
    logs.configure(json_output=True)
    logging.getLogger("tgi_async.x").warning('two\nlines and a "quote"')
    text = err()
    line = json.loads(text)
    assert line["level"] == "WARNING"
    assert line["message"] == 'two\nlines and a "quote"'
    assert line["target"] == "tgi_async.x"
    assert text.count("\n") == 1


def test_the_time_of_a_json_line_is_iso_8601_in_utc() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, "text", (), None)
    for milliseconds in (5.0, 45.67, 999.99):
        record.created, record.msecs = 1_700_000_000.0, milliseconds
        stamp = json.loads(logs.JsonFormatter().format(record))["timestamp"]
        assert stamp == f"2023-11-14T22:13:20.{int(milliseconds):03d}Z"
        assert datetime.fromisoformat(stamp).utcoffset() is not None


def test_an_exception_stays_in_its_line(err: Err) -> None:
    logs.configure(json_output=True)
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("tgi_async.x").exception("it failed")
    line = json.loads(err())
    assert line["message"] == "it failed"
    assert "ValueError: broken" in line["exception"]


def test_uvicorn_is_heard_only_when_it_warns(err: Err) -> None:
    logs.configure(json_output=False)
    logging.getLogger("uvicorn.error").info("Started server process")
    assert err() == ""
    logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    assert "Invalid HTTP" in err()
