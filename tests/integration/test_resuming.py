"""A chat with the real model whose client is cut ten times and whose server restarts twice."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.cutter import Cutter
from tests.helpers.resuming import client
from tests.integration.server import Server

pytestmark = [pytest.mark.model, pytest.mark.full]

CUTS = [600, 1200, 500, 4000, 700, 3000, 1, 9000, 800, 2500]
RESTARTS = (3, 7)
BODY: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Write a story about a lighthouse, with emojis."}],
    "max_tokens": 160,
    "stream": True,
    "stream_options": {"include_usage": True},
}


def read(payloads: list[str]) -> tuple[str, str, int, set[str]]:
    """The text, why it ended, its number of tokens, and the ids of the reply."""
    assert payloads.pop() == "[DONE]"
    chunks = [json.loads(payload) for payload in payloads]
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    text = "".join(choice["delta"].get("content") or "" for choice in choices)
    n_tokens = chunks[-1]["usage"]["completion_tokens"]
    return text, choices[-1]["finish_reason"], n_tokens, {chunk["id"] for chunk in chunks}


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.9, "seed": 11}])
def test_a_chat_that_is_cut_reads_as_one_that_is_not(
    tmp_path: Path, sampling: dict[str, Any]
) -> None:
    body = {**BODY, **sampling}
    servers: list[Server] = []
    with ExitStack() as stack:

        def start() -> None:
            flags = ["--dtype", "float32", "--resume-window", "30"]
            if servers:
                flags += ["--port", str(servers[0].port)]
                os.kill(servers[-1].pid, signal.SIGKILL)
                assert servers[-1].wait() == -signal.SIGKILL
            log = tmp_path / f"log{len(servers)}"
            last = 0 if len(servers) == len(RESTARTS) else -signal.SIGKILL
            servers.append(stack.enter_context(Server.running(log, *flags, ends_with=last)))

        def before(number: int) -> None:
            if number in RESTARTS:
                start()

        start()
        url = f"{servers[0].url}/v1/chat/completions"
        text, *ending, _ = read(list(client()(url, body)))
        with Cutter.running(servers[0].port, CUTS, before) as cutter:
            found = read(list(client()(f"{cutter.url}/v1/chat/completions", body)))
        assert found[:-1] == (text, *ending)
        assert len(found[-1]) == 1
        assert cutter.n_connections == len(CUTS) + 1
        logs = [server.log for server in servers]
        assert len(logs) == len(RESTARTS) + 1
        assert sum(log.count("computed again") for log in logs) == len(RESTARTS)
