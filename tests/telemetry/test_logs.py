from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from tests.telemetry.test_record import done
from tgi_async.telemetry import logs, record

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


def test_a_warning_in_a_request_says_whose(err: Err) -> None:
    seen = done()
    seen.request_id = "req_7"
    token = record.enter(seen)
    try:
        for json_output in (False, True):
            logs.configure(json_output)
            logging.getLogger("tgi_async.x").info("all is well")
            logging.getLogger("tgi_async.x").warning("something is wrong")
    finally:
        record.leave(token)
    well, wrong, well_json, wrong_json = err().splitlines()
    assert well.endswith("INFO all is well")
    assert wrong.endswith("WARNING something is wrong request_id=req_7")
    assert "request_id" not in json.loads(well_json)
    assert json.loads(wrong_json)["request_id"] == "req_7"


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


@pytest.mark.parametrize(
    ("text", "level"),
    [
        ("trace", logging.DEBUG),
        ("INFO", logging.INFO),
        ("warn", logging.WARNING),
        ("error", logging.ERROR),
        ("off", logging.CRITICAL + 1),
        ("debug,text_generation_router=info", logging.DEBUG),
        ("text_generation_router=debug", logging.INFO),
        ("loud", None),
        ("", None),
    ],
)
def test_levels_are_those_of_tgi(text: str, level: int | None) -> None:
    assert logs.level_of(text) == level


def test_what_is_below_the_level_is_not_logged(err: Err) -> None:
    logs.configure(json_output=False, level="error")
    logging.getLogger("tgi_async.x").warning("nobody sees this")
    logging.getLogger("tgi_async.x").error("this they do")
    assert err().endswith("ERROR this they do\n")
    logs.configure(json_output=False, level="off")
    logging.getLogger("tgi_async.x").critical("nor this")
    assert err() == ""


def test_a_level_is_colored_when_asked_for(err: Err) -> None:
    logs.configure(json_output=False, colorize=True)
    logging.getLogger("tgi_async.x").error("ERROR it is")
    assert err().endswith(" \x1b[31mERROR\x1b[0m ERROR it is\n")


def test_the_line_of_a_request_tells_its_times(err: Err) -> None:
    logs.configure(json_output=False)
    logging.getLogger("tgi_async.x").info("Success", extra={"request": done()})
    assert err().endswith(
        "INFO Success generate 200 tokens=3+4 total_time=2.5s validation_time=1ms "
        "queue_time=500ms inference_time=2s time_per_token=500ms\n"
    )


def test_the_line_of_a_request_has_its_id(err: Err) -> None:
    seen = done()
    seen.request_id = "abc-1"
    for json_output in (False, True):
        logs.configure(json_output=json_output)
        logging.getLogger("tgi_async.x").info("Success", extra={"request": seen})
        line = err()
        if json_output:
            assert json.loads(line)["request_id"] == "abc-1"
        else:
            assert line.endswith(" time_per_token=500ms request_id=abc-1\n")


def test_the_json_line_of_a_request_has_the_span_of_tgi(err: Err) -> None:
    logs.configure(json_output=True)
    logging.getLogger("tgi_async.x").info("Success", extra={"request": done()})
    line = json.loads(err())
    assert (line["message"], line["level"], line["status"]) == ("Success", "INFO", 200)
    assert (line["input_tokens"], line["generated_tokens"]) == (3, 4)
    span = line["span"]
    assert line["spans"] == [span]
    assert span["name"] == "generate"
    assert json.loads(span.pop("parameters"))["max_new_tokens"] == 20
    assert span == {
        "name": "generate",
        "total_time": "2.5s",
        "validation_time": "1ms",
        "queue_time": "500ms",
        "inference_time": "2s",
        "time_per_token": "500ms",
        "seed": "Some(7)",
    }
