"""The server as a process: how it starts, and how it fails to."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.tiny_tokenizer import tiny_inner, tiny_tokenizer
from tests.api.waiting import until, until_metric
from tests.doubles.fake_engine_run import alive
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour

Serve = Callable[..., FakeServer]
Talk = Callable[..., tuple[FakeServer, httpx.Response]]


@pytest.fixture
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serve]:
    started: list[FakeServer] = []

    def start(behaviour: Behaviour | None = None, *flags: str, **options: Any) -> FakeServer:
        folder = tmp_path_factory.mktemp("l")
        started.append(FakeServer(folder, behaviour or Behaviour(), *flags, **options))
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


def test_a_second_worker_stands_by_where_it_is_asked_for(serve: Serve) -> None:
    server = serve(None, "--standby")
    server.until_logged("a standby worker is loaded")
    assert len(server.worker_pids) == 2
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_the_dtype_of_the_cache_is_shown(serve: Serve) -> None:
    server = serve(None, "--kv-cache-dtype", "int8")
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/info").json()["kv_cache_dtype"] == "int8"
    assert "KV cache up to 0.00 GB in int8, " in server.log


def test_a_port_in_use_is_one_message(serve: Serve) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        server = serve(None, "--port", str(port))
        assert server.ended() == 1
    assert server.log == (
        f"Error: Cannot listen on 127.0.0.1 port {port}: Address already in use. Choose another "
        "with --hostname and --port.\n"
    )
    assert server.worker_pids == []


def test_a_model_that_the_worker_refuses_is_its_message(serve: Serve) -> None:
    server = serve(Behaviour(refuse={1: "this model is not for us"}))
    assert server.ended() == 1
    assert server.log.endswith("Error: this model is not for us\n")


def test_a_limit_beyond_the_model_is_reported(serve: Serve) -> None:
    server = serve(None, "--max-total-tokens", "257")
    assert server.ended() == 1
    assert "Error: --max-total-tokens must be at most 256" in server.log


def test_drafts_are_told_to_the_worker_and_shown(serve: Serve) -> None:
    server = serve(None, "--speculate", "5")
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/info").json()["speculate"] == 5
        parameters = {"max_new_tokens": 30, "details": True}
        reply = client.post("/generate", json={"inputs": "Hi", "parameters": parameters})
        assert reply.json()["details"]["generated_tokens"] == 30
        assert int(reply.headers["x-accepted-drafts"]) > 0
        measured = client.get("/metrics").text
        assert 'tgi_async_accepted_drafts{method="suffix",position="5"}' in measured
    assert "speculation by suffix: up to 5 drafts for a text in a step" in server.log


def test_without_drafts_nothing_is_said_of_them(serve: Serve) -> None:
    server = serve()
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/info").json()["speculate"] == 0
        assert "tgi_async_drafts" not in client.get("/metrics").text
    assert "speculation" not in server.log


def test_images_are_prepared_for_a_model_that_takes_them(serve: Serve, tmp_path: Path) -> None:
    tokenizer = tiny_inner()
    tokenizer.add_special_tokens(["<image>"])
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_str())
    found = {"path": str(tmp_path), "model_id": "a/b", "revision": None}
    behaviour = Behaviour(takes_images=True, vocab_size=259)
    flags = ("--allow-image-domains", "a.example")
    server = serve(behaviour, *flags, prepare=f"print({json.dumps(found)!r})")
    url = "data:image/png;base64," + b64encode(b"size 4 6").decode()
    body = {"inputs": f"![]({url}) What is it?", "parameters": {"max_new_tokens": 5}}
    with httpx.Client(base_url=server.url) as client:
        for _ in range(2):
            assert client.post("/generate", json=body).status_code == 200
        refused = client.post("/generate", json=body | {"inputs": "![](http://b.example/)"})
        assert refused.status_code == 422
        assert "Could not fetch image: b.example is not allowed. Allow" in refused.json()["error"]
        measured = client.get("/metrics").text
    assert 'tgi_async_images{result="prepared"} 1\n' in measured
    assert 'tgi_async_images{result="reused"} 1\n' in measured
    assert 'tgi_async_images{result="refused"} 1\n' in measured
    assert "\ntgi_async_image_held_bytes 0" in measured
    assert "images: 32 in a request, " in server.log
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_without_images_nothing_is_said_of_them(serve: Serve) -> None:
    server = serve()
    with httpx.Client(base_url=server.url) as client:
        assert "image" not in client.get("/metrics").text
    assert "images" not in server.log


def test_heads_that_come_with_a_model_all_draft(serve: Serve, tmp_path: Path) -> None:
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text(tiny_inner().to_str())
    found = {"path": str(tmp_path), "model_id": "a/b", "revision": None, "speculator": "/heads"}
    server = serve(Behaviour(n_heads=2), prepare=f"print({json.dumps(found)!r})")
    with httpx.Client(base_url=server.url) as client:
        assert client.get("/info").json()["speculate"] == 2
    assert "speculation by medusa: up to 2 drafts" in server.log


@pytest.fixture
def talk(serve: Serve) -> Talk:
    """A server with these flags, and its answer to a short request."""

    def ask(*flags: str, route: str = "/generate") -> tuple[FakeServer, httpx.Response]:
        server = serve(None, *flags)
        body: dict[str, Any] = {
            "inputs": "Hi",
            "parameters": {"max_new_tokens": 5, "seed": 7, "top_k": 3},
        }
        if route != "/generate":
            body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
        return server, httpx.post(f"{server.url}{route}", json=body)

    return ask


def test_a_request_is_a_line_in_the_log(talk: Talk) -> None:
    server, reply = talk()
    assert reply.status_code == 200
    line = server.until_logged(r"INFO Success generate 200 tokens=2\+5 (.*)\n")[1]
    times = ["total_time", "validation_time", "queue_time", "inference_time", "time_per_token"]
    assert [part.split("=")[0] for part in line.split()] == [*times, "request_id"]
    httpx.post(f"{server.url}/generate", json={"inputs": "", "parameters": {}})
    why = "Input validation error: `inputs` cannot be empty"
    server.until_logged(rf"WARNING Failed: validation: {why} generate 422 tokens=0\+0 total_time=")


def test_a_log_as_json_has_the_span_of_tgi(serve: Serve) -> None:
    server = serve(None, "--json-output")
    ready = re.compile(r"http://127\.0\.0\.1:(\d+)\. Try")
    url = f"http://127.0.0.1:{server.until_logged(ready)[1]}"
    parameters = {"max_new_tokens": 5, "seed": 7, "do_sample": True}
    httpx.post(f"{url}/generate", json={"inputs": "Hi", "parameters": parameters})
    server.until_logged(r'"message": "Success".*\n')
    (line,) = (json.loads(one) for one in server.log.splitlines() if '"Success"' in one)
    assert line["span"]["seed"] == "Some(7)"
    assert json.loads(line["span"]["parameters"])["max_new_tokens"] == 5
    assert [json.loads(one)["level"] for one in server.log.splitlines()]


def test_another_tokenizer_config_has_the_chat_template(talk: Talk, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"chat_template": "{{ eos_token }}", "eos_token": "abc"}))
    _, reply = talk("--tokenizer-config-path", str(config), route="/v1/chat/completions")
    assert reply.json()["usage"]["prompt_tokens"] == 3


def test_the_ends_of_texts_are_shown_and_end_answers(serve: Serve, tmp_path: Path) -> None:
    """`<|im_end|>` ends every text of the fake model, and this template writes another end."""
    config = tmp_path / "c.json"
    template = "{% for m in messages %}{{ m.content }}\n<|im_start|>{% endfor %}"
    config.write_text(json.dumps({"chat_template": template}))
    script = [*tiny_tokenizer().encode("well<|im_start|>")] * 2
    server = serve(Behaviour(script=script), "--tokenizer-config-path", str(config))
    with httpx.Client(base_url=server.url) as client:
        body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 10}
        [choice] = client.post("/v1/chat/completions", json=body).json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("well", "stop")
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 10}}
        assert client.post("/generate", json=body).json()["generated_text"] == "wellwell"
    assert "texts end with '<|im_end|>' (257)" in server.log
    assert "answers in a chat also end with '<|im_start|>' (256)" in server.log


def test_a_tokenizer_config_without_a_template_ends_the_start(serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "c.json"
    server = serve(None, "--tokenizer-config-path", str(config))
    assert server.ended() == 1
    assert f"Error: --tokenizer-config-path must be a file. Given: '{config}'" in server.log
    config.write_text("{}")
    server = serve(None, "--tokenizer-config-path", str(config))
    assert server.ended() == 1
    assert f"Error: {config} has no `chat_template`" in server.log


def test_an_endpoint_for_spans_is_looked_at_before_anything_slow(serve: Serve) -> None:
    server = serve(None, "--otlp-endpoint", "collector:4317", prepare="raise SystemExit('slow')")
    assert server.ended() == 1
    assert "Error: --otlp-endpoint must begin with http://" in server.log
    assert "slow" not in server.log


def test_spans_reach_a_collector(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http"):
        pytest.importorskip(package, reason="the extra `otel` is not installed")
    posted: list[bytes] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *given: object) -> None: ...

    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    with HTTPServer(("127.0.0.1", 0), Receiver) as collector:
        threading.Thread(target=collector.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{collector.server_port}"
        server = serve(None, "--otlp-endpoint", endpoint, "--otlp-service-name", "mine")
        httpx.post(f"{server.url}/generate", json={"inputs": "Hi"})
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
        collector.shutdown()
    (body,) = posted
    for text in (b"mine", b"generate", b"gen_ai.usage.output_tokens", b"fake/model"):
        assert text in body


def test_a_failed_preparation_ends_the_start(serve: Serve) -> None:
    server = serve(prepare="raise SystemExit('the disk is full')")
    assert server.ended() == 1
    assert "\nthe disk is full\nError: The model is not ready to be served" in server.log


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


LISTENING = re.compile(r"listening on (http://\S+);")


def test_while_it_loads_it_says_so_and_then_serves_the_same_connections(serve: Serve) -> None:
    server = serve(Behaviour(load_seconds=1.5))
    with httpx.Client(base_url=server.until_logged(LISTENING)[1]) as client:
        assert client.get("/health/live").status_code == 200
        while (health := client.get("/health").json()) and health["phase"] != "loading weights":
            assert health["error"].startswith("The server is not ready yet: ")
        assert health["error"].startswith("The server is not ready yet: loading weights, for 0 s")
        assert client.post("/generate", json={"inputs": "Hi"}).status_code == 503
        before = own_port(client)
        while client.get("/health").status_code == 503:
            signal.sigtimedwait([], 0.05)
        assert client.post("/generate", json={"inputs": "Hi"}).status_code == 200
        assert own_port(client) == before


def own_port(client: httpx.Client) -> int:
    """Where the client's last connection comes from."""
    with client.stream("GET", "/health") as reply:
        reply.read()
        address = reply.extensions["network_stream"].get_extra_info("client_addr")
    return int(address[1])


def test_it_can_be_stopped_with_clients_connected_while_it_loads(serve: Serve) -> None:
    server = serve(Behaviour(load_seconds=60))
    with httpx.Client(base_url=server.until_logged(LISTENING)[1]) as client:
        assert client.get("/health").status_code == 503
        server.signal(signal.SIGTERM)
        assert server.ended() == 0
    assert "stopped before it was ready" in server.log


def test_a_worker_gone_for_good_ends_the_server_with_an_error(serve: Serve) -> None:
    server = serve(Behaviour(die_at={1: 3}, die_loading=[2, 3, 4]))
    reply = httpx.post(f"{server.url}/generate", json={"inputs": "Hi"})
    assert reply.status_code == 424
    assert reply.json()["error_type"] == "generation"
    assert server.ended() == 1
    assert "the model worker is gone for good" in server.log


async def refused_at_once(server: FakeServer, n: int, n_refused: int) -> list[int]:
    """The statuses that come while other ones of `n` requests run and wait, which they do long."""
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 200}}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as client:
        asked = [asyncio.create_task(client.post("/generate", json=body)) for _ in range(n)]
        await until_metric(client, f"tgi_request_count {n}")
        await until(lambda: sum(one.done() for one in asked) >= n_refused)
        reported = [one.result().status_code for one in asked if one.done()]
        for one in asked:
            one.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return reported


@pytest.mark.parametrize(
    ("flags", "n_taken"),
    [((), 15), (("--max-queued-requests", "0"), 3), (("--strict-tgi",), 3)],
)
async def test_more_requests_than_run_at_once_wait(
    serve: Serve, flags: tuple[str, ...], n_taken: int
) -> None:
    server = serve(Behaviour(step_seconds=0.1), "--max-concurrent-requests", "3", *flags)
    reported = await refused_at_once(server, 17, 17 - n_taken)
    assert reported == [429] * (17 - n_taken)


def test_what_waits_when_the_server_stops_is_served_or_gets_503(serve: Serve) -> None:
    server = serve(
        Behaviour(step_seconds=0.05),
        *("--max-concurrent-requests", "1", "--graceful-termination-timeout", "1"),
    )
    with server.stream(100), ThreadPoolExecutor(1) as pool:
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": 20}}
        waiting = pool.submit(httpx.post, f"{server.url}/generate", json=body, timeout=60)
        while "tgi_queue_size 1\n" not in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.01)
        server.signal(signal.SIGTERM)
        reported = waiting.result(60)
    assert (reported.status_code, reported.headers["retry-after"]) == (503, "5")
    assert server.ended() == 0
