from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tgi_async.joining import _answering
from tgi_async.serving import gate_for
from tgi_async.settings import Settings


async def test_a_node_that_loads_says_that_it_lives(tmp_path: Path) -> None:
    settings = Settings(unix_socket=str(tmp_path / "http"))
    async with _answering(gate_for(settings), settings):
        transport = httpx.AsyncHTTPTransport(uds=settings.unix_socket)
        async with httpx.AsyncClient(transport=transport, base_url="http://node") as client:
            assert (await client.get("/health/live")).status_code == 200
            assert (await client.get("/health")).status_code == 503
    assert not (tmp_path / "http").exists()


async def test_a_port_that_another_node_of_the_machine_has_is_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        settings = Settings(hostname="127.0.0.1", port=taken.getsockname()[1])
        async with _answering(gate_for(settings), settings):
            assert "nobody can ask how this node is: Cannot listen on" in caplog.text
