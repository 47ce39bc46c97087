"""One server for all clients."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.clients.suites.full_server import ROWS
from tests.helpers.tiny_processors import save_processor
from tests.helpers.tiny_vision import save_vision
from tests.integration.server import Server
from workers.errors import ModelUnavailable
from workers.models.embedded import find_gguf

API_KEY = "a key that clients must send"
FLAGS = (
    *("--dtype", "float32"),
    *("--max-concurrent-requests", str(ROWS), "--max-queued-requests", "0"),
)
"""In float32 a text is the same in every batch. Nothing waits, so that a suite can meet a server
that has no room."""


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


@pytest.fixture(scope="session")
def resumable_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The same, with ids of events. Who leaves a stream keeps its row for a second."""
    try:
        find_gguf()
    except ModelUnavailable as unavailable:
        pytest.skip(str(unavailable))
    log = tmp_path_factory.mktemp("resumable") / "server.log"
    with Server.running(log, *FLAGS, "--api-key", API_KEY, "--resume-window", "1") as running:
        yield running


@pytest.fixture(scope="session")
def image_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Serves a tiny model that takes images, likewise."""
    folder = tmp_path_factory.mktemp("images")
    save_vision("idefics3", folder)
    save_processor("idefics3", folder)
    flags = ("--model-id", str(folder), *FLAGS, "--api-key", API_KEY)
    with Server.running(folder / "server.log", *flags) as running:
        yield running
