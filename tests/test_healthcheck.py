from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tgi_async.healthcheck import address, main

ENTRYPOINT = ["/opt/bin/python", "/opt/bin/tgi-async-entrypoint"]


@pytest.mark.parametrize(
    ("command", "environment", "found"),
    [
        (ENTRYPOINT, {"PORT": "80"}, ("127.0.0.1", 80)),
        ([*ENTRYPOINT, "--port", "81"], {"PORT": "80"}, ("127.0.0.1", 81)),
        ([*ENTRYPOINT, "--port=81", "--json-output"], {"PORT": "80"}, ("127.0.0.1", 81)),
        ([*ENTRYPOINT, "-p", "81", "--hostname", "::"], {}, ("::1", 81)),
        ([*ENTRYPOINT, "--hostname", "10.0.0.7"], {"PORT": "80"}, ("10.0.0.7", 80)),
        ([*ENTRYPOINT, "serve"], {"PORT": "80"}, ("127.0.0.1", 8080)),
        (["/sbin/docker-init", "--", *ENTRYPOINT, "-p", "81"], {}, ("127.0.0.1", 81)),
        (["python", "/opt/bin/text-generation-launcher", "-p", "81"], {}, ("127.0.0.1", 81)),
        (
            ENTRYPOINT,
            {"PORT": "80", "AIP_HTTP_PORT": "8081", "AIP_HEALTH_ROUTE": "/h"},
            ("127.0.0.1", 8081),
        ),
    ],
)
def test_it_asks_where_the_server_listens(
    command: list[str], environment: dict[str, str], found: tuple[str, int]
) -> None:
    assert address(command, environment) == found


@contextmanager
def answering(status: int) -> Iterator[int]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def check(tmp_path: Path, port: int) -> int:
    words = [*ENTRYPOINT, "--port", str(port)]
    (tmp_path / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    return main(tmp_path)


@pytest.mark.parametrize(("status", "healthy"), [(200, 0), (503, 1)])
def test_it_is_healthy_when_it_is_ready(status: int, healthy: int, tmp_path: Path) -> None:
    with answering(status) as port:
        assert check(tmp_path, port) == healthy


def test_where_nothing_listens_it_is_not_healthy(tmp_path: Path) -> None:
    with answering(200) as port:
        pass
    assert check(tmp_path, port) == 1
