"""The line that each request leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from tgi_async.api.access_log import AccessLog
from tgi_async.api.exchange import DIRECT
from tgi_async.telemetry.logs import JsonFormatter, TextFormatter

Line = Callable[..., Any]


class Writer:
    """What the connection offers."""

    def __init__(self) -> None:
        self.written = b""

    def keeps_up(self) -> bool:
        return True

    def write(self, piece: bytes) -> None:
        self.written += piece


def replying(status: int = 200, body: bytes = b"12345") -> Any:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = [(b"x-request-id", b"req_1")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


async def nothing(*_: Any) -> Any:
    return None


def scope(path: str = "/info", method: str = "GET", **others: Any) -> dict[str, Any]:
    return {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"key=secret",
        "headers": [(b"user-agent", b"curl/8 \xff\n")],
        "client": ("203.0.113.7", 4711),
        **others,
    }


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Callable[[], list[dict[str, Any]]]:
    caplog.set_level(logging.INFO, "tgi_async.access")
    return lambda: [json.loads(JsonFormatter().format(one)) for one in caplog.records]


async def test_a_line_has_what_was_asked_and_what_came_of_it(
    lines: Line, caplog: pytest.LogCaptureFixture
) -> None:
    await AccessLog(replying(404))(scope(), nothing, nothing)
    (line,) = lines()
    assert 0 <= line.pop("duration") < 10
    assert (
        line.items()
        >= {
            "level": "INFO",
            "target": "tgi_async.access",
            "method": "GET",
            "path": "/info",
            "status": 404,
            "bytes": 5,
            "client": "203.0.113.7",
            "user_agent": "curl/8 \xff\n",
            "request_id": "req_1",
            "complete": True,
        }.items()
    )
    text = TextFormatter(colorize=False).format(caplog.records[0])
    assert "203.0.113.7 GET /info 404 5 bytes" in text
    assert 'user_agent="curl/8 \\u00ff\\n"' in text
    assert "secret" not in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "path", ["/", "/health", "/health/live", "/ping", "/metrics", "/v2/models/m/ready", "/aip"]
)
async def test_probes_are_left_out_unless_they_fail(lines: Line, path: str) -> None:
    for method in ("GET", "HEAD"):
        await AccessLog(replying(), ["/aip"])(scope(path, method), nothing, nothing)
    assert lines() == []
    await AccessLog(replying(503), ["/aip"])(scope(path), nothing, nothing)
    await AccessLog(replying(), ["/aip"])(scope(path, "POST"), nothing, nothing)
    assert [line["status"] for line in lines()] == [503, 200]


async def test_what_is_written_directly_is_counted(lines: Line) -> None:
    writer = Writer()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        assert scope["extensions"][DIRECT]["writer"].keeps_up()
        scope["extensions"][DIRECT]["writer"].write(b"three")
        await send({"type": "http.response.body", "body": b""})

    await AccessLog(app)(scope(extensions={DIRECT: {"writer": writer}}), nothing, nothing)
    assert writer.written == b"three"
    assert lines()[0]["bytes"] == 8


async def test_the_body_that_head_leaves_out_is_not_counted(lines: Line) -> None:
    await AccessLog(replying())(scope(method="HEAD"), nothing, nothing)
    assert lines()[0]["bytes"] == 0


async def test_a_stream_that_is_cut_is_incomplete(lines: Line) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        await AccessLog(app)(scope(), nothing, nothing)
    assert (lines()[0]["status"], lines()[0]["complete"]) == (200, False)


async def test_who_leaves_before_a_reply_has_a_status_too(lines: Line) -> None:
    await AccessLog(nothing)(scope(client=None), nothing, nothing)
    assert (lines()[0]["status"], lines()[0]["client"]) == (499, "unix")
