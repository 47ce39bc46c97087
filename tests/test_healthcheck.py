from __future__ import annotations

import http.server
import socketserver
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import certificates
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
        ([*ENTRYPOINT, "serve"], {"SM_TGI_PORT": "81"}, ("127.0.0.1", 81)),
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
    assert address(command, environment)[:2] == found


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass

    def address_string(self) -> str:
        return "a client"


@contextmanager
def serving(server: socketserver.BaseServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def answering(status: int = 200, *, certificate: certificates.Pair | None = None) -> Iterator[int]:
    handler = type("Answer", (Handler,), {"status": status})
    server = http.server.HTTPServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate.certificate, certificate.key)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    with serving(server):
        yield server.server_port


def check(tmp_path: Path, *flags: str) -> int:
    words = [*ENTRYPOINT, *flags]
    (tmp_path / "cmdline").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    return main(tmp_path)


@pytest.mark.parametrize(("status", "healthy"), [(200, 0), (503, 1)])
def test_it_is_healthy_when_it_is_ready(status: int, healthy: int, tmp_path: Path) -> None:
    with answering(status) as port:
        assert check(tmp_path, "--port", str(port)) == healthy


def test_where_nothing_listens_it_is_not_healthy(tmp_path: Path) -> None:
    with answering() as port:
        pass
    assert check(tmp_path, "--port", str(port)) == 1


def test_a_server_with_a_certificate_is_asked_by_tls(tmp_path: Path) -> None:
    made = certificates.pair(tmp_path, "models.example.org")
    flags = ("--ssl-certfile", made.certificate, "--ssl-keyfile", made.key)
    with answering(certificate=made) as port:
        assert check(tmp_path, "--port", str(port), *flags) == 0
        assert check(tmp_path, "--port", str(port)) == 1


def test_a_server_that_listens_on_a_file_is_asked_there(tmp_path: Path) -> None:
    place = str(tmp_path / "socket")
    with serving(socketserver.UnixStreamServer(place, Handler)):
        assert check(tmp_path, "--unix-socket", place) == 0
    assert check(tmp_path, "--unix-socket", f"{place}-elsewhere") == 1
