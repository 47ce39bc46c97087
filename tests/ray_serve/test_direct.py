"""The short way to Serve's HTTP server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from tgi_async.api.exchange import DIRECT
from tgi_async.ray_serve.direct import offer, same_loop


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""

    def write(self, data: Any) -> None:
        self.written += data


class ServesReceive:
    """Calls that of the HTTP server, as Serve's does."""

    def __init__(self, receive: Callable[[], Awaitable[Any]]) -> None:
        self._receive = receive

    async def __call__(self) -> Any:
        return await self._receive()


def cycle_on(transport: Transport) -> RequestResponseCycle:
    scope: Any = {"type": "http", "method": "POST", "path": "/"}
    logger = logging.getLogger(__name__)
    return RequestResponseCycle(
        scope=scope,
        transport=transport,
        flow=FlowControl(transport),
        logger=logger,
        access_logger=logger,
        access_log=False,
        default_headers=[],
        message_event=asyncio.Event(),
        expect_100_continue=False,
        keep_alive=True,
        on_response=lambda: None,
    )


async def test_pieces_of_a_stream_go_to_the_socket() -> None:
    transport = Transport()
    cycle = cycle_on(transport)
    scope: dict[str, Any] = {"type": "http", "extensions": {"other": {}}}
    offer(scope, ServesReceive(cycle.receive))
    assert "other" in scope["extensions"]
    writer = scope["extensions"][DIRECT]["writer"]
    assert not writer.keeps_up()
    await cycle.send({"type": "http.response.start", "status": 200, "headers": []})
    assert writer.keeps_up()
    transport.written = b""
    writer.write(b"data: x\n\n")
    assert transport.written == b"9\r\ndata: x\n\n\r\n"
    await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})
    assert transport.written.endswith(b"\r\n0\r\n\r\n")
    assert not writer.keeps_up()


async def test_without_uvicorn_behind_it_nothing_is_offered() -> None:
    async def receive() -> Any:
        return {"type": "http.disconnect"}

    scope: dict[str, Any] = {"type": "http"}
    for one in (receive, ServesReceive(receive)):
        offer(scope, one)
    assert "extensions" not in scope


def test_without_ray_it_is_no_loop_of_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    assert not same_loop()
