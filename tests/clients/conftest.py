"""One server for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.server import Server
from workers.models.embedded import find_gguf
from workers.models.errors import ModelUnavailable

API_KEY = "a key that clients must send"
FLAGS = ("--dtype", "float32", "--max-concurrent-requests", "8", "--max-best-of", "9")
"""In float32 a text is the same in every batch. More generations than may run at once can be asked
for in one request, which is how a suite meets an overloaded server."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "clients: unmodified clients, each in a virtual environment of its own"
    )


@pytest.fixture(scope="session")
def client_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves the embedded model to whoever has the key."""
    try:
        find_gguf()
    except ModelUnavailable as unavailable:
        pytest.skip(str(unavailable))
    log = tmp_path_factory.mktemp("clients") / "server.log"
    with Server.running(log, *FLAGS, "--api-key", API_KEY) as running:
        yield running
