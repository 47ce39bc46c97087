"""Real servers, the client that docs/resuming.md shows, and one that knows nothing of ids."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient

from tests.doubles.fake_engine_run import DEADLINE
from tests.doubles.fake_server import READY, FakeServer
from tests.doubles.fake_worker import Behaviour
from tests.helpers.cutter import Cutter
from tests.helpers.resuming import client as resuming_client

CUTS = [400, 700, 300, 2000, 350, 900, 1, 5000, 500, 1500]
RESTARTS = (3, 7)


class Servers:
    """A server at one port, and those that take its place."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.all: list[FakeServer] = []
        self.port = 0

    def start(self, *more: str) -> None:
        folder = self._folder / str(len(self.all))
        folder.mkdir()
        # Halves of characters too.
        behaviour = Behaviour(
            tokens=tuple(range(256)), step_seconds=0.002, n_blocks=4096, max_total_tokens=1024
        )
        flags = "--port", str(self.port), "--resume-window", "30", "--access-log", *more
        self.all.append(FakeServer(folder, behaviour, *flags))
        self.port = int(self.all[-1].until_logged(READY)[2])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def restart(self, *more: str) -> None:
        """Lose all that the server has in memory, and start it with more flags."""
        self.all[-1].signal(signal.SIGKILL)
        self.all[-1].process.wait(DEADLINE)
        self.start(*more)


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    found = Servers(tmp_path)
    found.start()
    yield found
    found.all[-1].signal(signal.SIGTERM)
    assert found.all[-1].ended() == 0


def read(payloads: list[str]) -> Any:
    assert payloads.pop() == "[DONE]"
    texts = ["", ""]
    for payload in payloads:
        for choice in json.loads(payload)["choices"]:
            texts[choice["index"]] += choice["text"]
    return texts, json.loads(payloads[-1])["usage"]["completion_tokens"]


def test_a_client_that_is_cut_ten_times_reads_one_text_though_the_server_restarts_twice(
    servers: Servers,
) -> None:
    events = resuming_client()
    body = {
        "prompt": "Hi",
        "n": 2,
        "max_tokens": 200,
        "temperature": 1,
        "seed": 7,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    whole = read(list(events(f"{servers.url}/v1/completions", body)))
    assert len(whole[0][0]) > 100
    assert whole[0][0] != whole[0][1]

    def before(number: int) -> None:
        if number in RESTARTS:
            servers.restart()

    with Cutter.running(servers.port, CUTS, before) as cutter:
        found = read(list(events(f"{cutter.url}/v1/completions", body)))
    assert found == whole
    assert cutter.n_connections == len(CUTS) + 1
    assert len(servers.all) == len(RESTARTS) + 1
    logs = [server.log for server in servers.all]
    assert sum(log.count("goes on from memory") for log in logs) >= 3
    assert sum(log.count("computed again") for log in logs) == len(RESTARTS)


def test_a_client_that_knows_no_ids_reads_the_stream_as_ever(servers: Servers) -> None:
    client = InferenceClient(model=servers.url)
    asked: Any = {"max_new_tokens": 40, "do_sample": True, "seed": 3}
    whole = client.text_generation("Hi", **asked)
    details = list(client.text_generation("Hi", **asked, stream=True, details=True))
    assert "Hi" + "".join(one.token.text for one in details) == whole
    assert details[-1].details.generated_tokens == 40
    assert list(client.text_generation("Hi", **asked, stream=True)) == [
        one.token.text for one in details
    ]


def test_a_server_with_other_flags_has_other_streams(servers: Servers) -> None:
    """It would read calls of tools where the first one had shown text, or the reverse."""
    body = {"prompt": "a", "max_tokens": 20, "stream": True}
    path = "/v1/completions"
    events = httpx.post(servers.url + path, json=body).text.split("\n")
    last = next(line for line in events if line.startswith("id: ")).removeprefix("id: ")
    headers = {"Last-Event-ID": last}
    servers.restart()
    assert httpx.post(servers.url + path, json=body, headers=headers).status_code == 200
    servers.restart("--tool-call-parser", "mistral")
    refused = httpx.post(servers.url + path, json=body, headers=headers)
    assert refused.status_code == 409
    assert "a server with the same flags" in refused.text
