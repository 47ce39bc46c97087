"""Helper processes that are killed or stopped: no request fails of it."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour
from tests.faults.test_http import client_of, due, gauge, read, serving, until

TEMPLATE = (
    "{% for one in messages %}{% if one.content is string %}{{ one.content }}{% else %}"
    "{% for part in one.content %}{{ part.text or '<image>' }}{% endfor %}{% endif %}{% endfor %}"
)
MODULES = {
    "templates": b"tgi_async.text.chat_process",
    "grammars": b"workers.grammar.check_process",
    "images": b"tests.doubles.image_process",
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    path = tmp_path_factory.mktemp("helpers")
    model = path / "model"
    model.mkdir()
    tokenizer = tiny_inner()
    tokenizer.add_special_tokens(["<image>"])
    (model / "tokenizer.json").write_text(tokenizer.to_str())
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE}))
    prepared = json.dumps({"path": str(model), "model_id": "a/b", "revision": None})
    behaviour = Behaviour(n_blocks=400, takes_images=True, vocab_size=259, step_seconds=0.005)
    with serving(path, behaviour, prepare=f"print({prepared!r})") as one:
        yield one


def helpers(server: FakeServer, kind: str) -> list[int]:
    """The processes of this kind that run."""
    router = server.process.pid
    found = []
    # It has several threads, and each is the parent of what it has started.
    for thread in os.listdir(f"/proc/{router}/task"):
        for pid in Path(f"/proc/{router}/task/{thread}/children").read_text().split():
            if MODULES[kind] in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
                found.append(int(pid))
    return found


async def ask(client: httpx.AsyncClient, kind: str, number: int) -> httpx.Response:
    """A request that needs the helper, each time another one, as answers are kept."""
    if kind == "grammars":
        grammar = {"type": "regex", "value": f"[A-Z]{{{number}}}"}
        parameters: dict[str, Any] = {"max_new_tokens": 3, "grammar": grammar}
        body: dict[str, Any] = {"inputs": "Hi", "parameters": parameters}
        return await client.post("/generate", json=body)
    content: Any = f"Hi {number}"
    if kind == "images":
        data = base64.b64encode(f"size 4 {number}".encode()).decode()
        url = f"data:image/png;base64,{data}"
        content = [{"type": "image_url", "image_url": {"url": url}}]
    body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3}
    return await client.post("/v1/chat/completions", json=body)


@pytest.mark.parametrize("kind", MODULES)
async def test_an_idle_helper_that_is_killed_is_replaced(server: FakeServer, kind: str) -> None:
    async with client_of(server) as client:
        for number in (1, 2):
            reply = await ask(client, kind, number)
            assert reply.status_code == 200, reply.text
            for pid in helpers(server, kind):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("kind", MODULES)
async def test_a_helper_that_is_stopped_and_killed_costs_nobody_anything(
    server: FakeServer, kind: str
) -> None:
    async with client_of(server) as client:
        first = await ask(client, kind, 3)
        assert first.status_code == 200, first.text
        restarts = await gauge(client, "tgi_async_worker_restarts")
        stopped = helpers(server, kind)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(ask(client, kind, 4))
        # Who needs no such helper is served meanwhile.
        assert await read(client, "beside") == due(server, "beside")
        assert not asked.done() or asked.result().status_code == 200
        assert (await client.get("/health")).status_code == 200
        for pid in stopped:
            os.kill(pid, signal.SIGKILL)
        # It is asked once more, of another process.
        assert (await asked).status_code == 200
        assert (await ask(client, kind, 5)).status_code == 200
        assert await gauge(client, "tgi_async_worker_restarts") == restarts


@pytest.mark.parametrize("kind", MODULES)
async def test_a_helper_that_is_stopped_for_a_moment_costs_a_moment(
    server: FakeServer, kind: str
) -> None:
    async with client_of(server) as client:
        assert (await ask(client, kind, 6)).status_code == 200
        stopped = helpers(server, kind)
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        asked = asyncio.create_task(ask(client, kind, 7))
        assert await read(client, "beside") == due(server, "beside")
        for pid in stopped:
            os.kill(pid, signal.SIGCONT)
        assert (await asked).status_code == 200


async def test_the_worker_lives_through_all_of_it(server: FakeServer) -> None:
    async with client_of(server) as client:

        async def same() -> bool:
            return await gauge(client, "tgi_async_worker_restarts") == 0

        await until(same)
