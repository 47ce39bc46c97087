"""A replica without Serve: what Serve calls is called here."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.doubles.fake_engine_run import alive, until
from tests.doubles.fake_ray import FakeReplica, variables
from tests.doubles.fake_worker import Behaviour
from tgi_async.errors import StartError
from tgi_async.ray_serve.health import Unwell
from tgi_async.telemetry import logs

GENERATE: dict[str, Any] = {"inputs": "Hi", "parameters": {"max_new_tokens": 5}}


class Run(NamedTuple):
    replica: FakeReplica
    client: httpx.AsyncClient
    journal: Path

    @property
    def worker_pids(self) -> list[int]:
        return [json.loads(line)["pid"] for line in self.journal.read_text().splitlines()]


@pytest.fixture(autouse=True)
def _nothing_for_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replica has its process for itself: its logs, and its garbage collector."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setattr(gc, "freeze", lambda: None)


async def run_lifespan(app: Any, receive: Any, send: Any) -> None:
    await app({"type": "lifespan"}, receive, send)


@asynccontextmanager
async def running(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    behaviour: Behaviour | None = None,
    *,
    root: str = "",
    prepare: str = "",
    args: dict[str, Any] | None = None,
) -> AsyncIterator[Run]:
    for name, value in variables(folder, behaviour or Behaviour(), prepare).items():
        monkeypatch.setenv(name, value)
    replica = FakeReplica(args or {})
    app = await replica.__serve_build_asgi_app__()
    events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    events.put_nowait({"type": "lifespan.startup"})
    said: list[str] = []

    async def say(message: Any) -> None:
        said.append(message["type"])

    living = asyncio.create_task(run_lifespan(app, events.get, say))
    transport = httpx.ASGITransport(app=app, root_path=root)
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            yield Run(replica, client, folder / "journal")
    finally:
        events.put_nowait({"type": "lifespan.shutdown"})
        await living
    assert said == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert not any(alive(pid) for pid in Run(replica, client, folder / "journal").worker_pids)


async def test_it_answers_until_serve_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, args={"max-total-tokens": 100}) as run:
        info = (await run.client.get("/info")).json()
        assert (info["model_id"], info["max_total_tokens"]) == ("fake/model", 100)
        reply = await run.client.post("/generate", json=GENERATE, headers={"x-request-id": "mine"})
        assert len(reply.json()["generated_text"]) == 5
        # Serve says which request it was.
        assert "x-request-id" not in reply.headers
        await run.replica.check_health()


async def test_it_is_below_the_route_that_serve_has_it_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, root="/llm") as run:
        assert (await run.client.get("/llm/info")).status_code == 200
        refused = await run.client.post("/llm/v1/completions", json={})
        assert refused.json()["error"]["type"] == "invalid_request_error"


async def test_a_worker_that_is_being_replaced_is_not_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(tmp_path, monkeypatch, Behaviour(die_at={1: 3})) as run:
        answer = asyncio.create_task(run.client.post("/generate", json=GENERATE))
        await until(lambda: len(run.worker_pids) == 2)
        await run.replica.check_health()
        assert len((await answer).json()["generated_text"]) == 5
        await run.replica.check_health()


async def test_workers_that_do_not_come_back_are_unhealthy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(
        tmp_path, monkeypatch, Behaviour(refuse=dict.fromkeys((2, 3, 4), "not again"))
    ) as run:
        os.kill(run.worker_pids[0], signal.SIGKILL)
        await until(lambda: run.replica.failed)
        with pytest.raises(Unwell, match="the workers are gone for good: not again"):
            await run.replica.check_health()


async def test_why_a_model_is_not_there_is_in_the_error_that_serve_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare = "import sys; print('Error: there is no model a/b', file=sys.stderr); sys.exit(1)"
    with pytest.raises(StartError) as raised:
        async with running(tmp_path, monkeypatch, prepare=prepare):
            pass
    assert str(raised.value) == (
        "Error: there is no model a/b\nThe model is not ready to be served; the reason is above."
    )
    assert "there is no model a/b" in capfd.readouterr().err


async def test_shards_are_as_many_as_the_gpus_that_ray_gave(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(StartError, match=r"is 4, and the replica has 2 GPUs. Set"):
        async with running(tmp_path, monkeypatch, args={"num-shard": 4}):
            pass
    async with running(tmp_path, monkeypatch) as run:
        assert len(run.worker_pids) == 2
