"""Generated requests, good and bad, against the whole server with a tiny model of random weights.

No answer is a 5xx, none is off the document, none stays away.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api.conftest import CHATML
from tests.api.tiny_tokenizer import tiny_inner
from tests.helpers.tiny_llama import save_tiny_llama
from tests.integration.server import Server

CONFIGURATION = Path(__file__).with_name("schemathesis.toml")
ROOT = Path(__file__).parents[2]
ANSWER_SECONDS = 30
MANY_FIELDS = "^/(v1/(chat/)?completions|chat_tokenize|invocations|vertex)$"
"""What follows from the document for these are thousands of requests, for the long version."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("s")
    tokenizer = tiny_inner()
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    (folder / "chat_template.jinja").write_text(CHATML)
    save_tiny_llama(folder, tokenizer.get_vocab_size())
    flags = ("--model-id", str(folder), "--max-total-tokens", "64", "--kserve")
    with Server.running(folder / "log", *flags) as running:
        yield running
        assert "error in the server" not in running.log


def run(server: Server, n_examples: int, *flags: str) -> int:
    """Send `n_examples` to each operation, and those that follow from the document alone.

    Returns how many were sent. Raises AssertionError with what was found, and how to send it again.
    """
    command = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            *(str(command), "--no-color", "--config-file", str(CONFIGURATION)),
            *("run", f"{server.url}/api-doc/openapi.json", "--continue-on-failure"),
            *("--max-examples", str(n_examples), "--request-timeout", str(ANSWER_SECONDS)),
            # Most texts that it draws for a part of a path cannot be sent there.
            *("--suppress-health-check", "filter_too_much"),
            *flags,
        ],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"SCHEMATHESIS_HOOKS": "tests.openapi.hooks", "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    n_sent = re.search(r"(\d+) generated", done.stdout)
    assert n_sent, done.stdout
    return int(n_sent[1])


def test_generated_requests_are_answered_as_documented(server: Server) -> None:
    drawn = ("--seed", "1", "--phases", "fuzzing,stateful", "--exclude-path-regex", MANY_FIELDS)
    assert run(server, 10, *drawn) >= 150


def test_generated_requests_of_many_fields_are_answered_as_documented(server: Server) -> None:
    drawn = ("--seed", "1", "--phases", "fuzzing", "--include-path-regex", MANY_FIELDS)
    assert run(server, 20, *drawn) >= 50


@pytest.mark.full
@pytest.mark.timeout(3600)
def test_many_generated_requests_are_answered_as_documented(server: Server) -> None:
    assert run(server, 120) >= 2000
