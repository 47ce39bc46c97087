"""The server as a process: how it starts, and how it fails to."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from tests.fake_engine_run import alive
from tests.fake_server import FakeServer
from tests.fake_worker import Behaviour
from tgi_async.errors import StartError
from tgi_async.launcher import Prepared, _limits
from tgi_async.settings import Settings

Serve = Callable[..., FakeServer]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    started: list[FakeServer] = []

    def start(behaviour: Behaviour | None = None, *flags: str, prepare: str = "") -> FakeServer:
        folder = tmp_path_factory.mktemp("l")
        started.append(FakeServer(folder, behaviour or Behaviour(), *flags, prepare=prepare))
        return started[-1]

    yield start
    for server in started:
        if server.process.poll() is None:
            server.process.kill()
            server.process.wait()


def test_it_starts_answers_and_says_how_to_ask(serve: Serve) -> None:
    server = serve()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/health").status_code == 200
        parameters = {"max_new_tokens": 5}
        reply = client.post("/generate", json={"inputs": "Hi", "parameters": parameters})
        assert reply.status_code == 200
        assert len(reply.json()["generated_text"]) == 5
    assert f"curl {server.url}/v1/chat/completions" in server.log
    assert "loading weights (none): 0.0 s" in server.log
    assert "this is a fake worker" in server.log
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_a_port_in_use_is_one_message(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(None, "--port", str(port))
        assert server.ended() == 1
    assert server.log == (
        f"Error: Can not listen on 127.0.0.1 port {port}: Address already in use. Choose another "
        "with --hostname and --port.\n"
    )
    assert server.worker_pids == []


def test_a_model_that_the_worker_refuses_is_its_message(serve: Serve) -> None:
    server = serve(Behaviour(refuse={1: "this model is not for us"}))
    assert server.ended() == 1
    assert server.log.endswith("Error: this model is not for us\n")


def test_a_limit_beyond_the_model_is_told(serve: Serve) -> None:
    server = serve(None, "--max-total-tokens", "257")
    assert server.ended() == 1
    assert "Error: --max-total-tokens must be at most 256" in server.log


def test_limits_are_completed_by_what_there_is() -> None:
    prepared = Prepared(Path(), "a/b", "main")
    found = _limits(Settings(max_best_of=7), prepared, 100)
    assert (found.max_total_tokens, found.max_input_tokens) == (100, 99)
    assert (found.model_id, found.revision, found.max_best_of) == ("a/b", "main", 7)
    found = _limits(Settings(max_total_tokens=50, max_input_length=10), prepared, 100)
    assert (found.max_total_tokens, found.max_input_tokens) == (50, 10)
    with pytest.raises(StartError, match=r"less than max-total-tokens, here 100\. Given: 100"):
        _limits(Settings(max_input_tokens=100), prepared, 100)


def test_a_failed_preparation_ends_the_start(serve: Serve) -> None:
    server = serve(prepare="raise SystemExit('the disk is full')")
    assert server.ended() == 1
    assert server.log.startswith("the disk is full\nError: The model is not ready to be served")


def test_it_can_be_stopped_while_the_model_is_prepared(serve: Serve) -> None:
    code = "import os, sys, time; print(os.getpid(), file=sys.stderr); time.sleep(60)"
    server = serve(prepare=code)
    pid = int(server.until_logged(r"(\d+)\n")[1])
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
    assert not alive(pid)


def test_it_can_be_stopped_while_the_worker_loads(serve: Serve) -> None:
    server = serve(Behaviour(load_seconds=60))
    server.until_logged("serving")
    while not server.worker_pids:
        signal.sigtimedwait([], 0.01)
    server.signal(signal.SIGINT)
    server.signal(signal.SIGINT)
    assert server.ended() == 0
    assert "stopped before it was ready" in server.log


def test_a_worker_gone_for_good_ends_the_server_with_an_error(serve: Serve) -> None:
    server = serve(Behaviour(die_at={1: 3}, die_loading=[2, 3, 4]))
    reply = httpx.post(f"{server.url}/generate", json={"inputs": "Hi"})
    assert reply.status_code == 424
    assert reply.json()["error_type"] == "generation"
    assert server.ended() == 1
    assert "the model worker is gone for good" in server.log
