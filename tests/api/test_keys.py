"""Keys of a file over HTTP: who is let in, whose share it is, and what each may have."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.api.conftest import Api, Settings
from tests.api.waiting import until
from tests.doubles.fake_engine import FakeEngine
from tgi_async.keys import KeyFile
from tgi_async.scheduler.reservations import Capacity

BODY = {"inputs": "Hi", "parameters": {"max_new_tokens": 4}}
KEYS = """
keys:
  - {name: large, key: sk-large, weight: 3}
  - {name: small, key: sk-small, max_concurrent_requests: 2, max_total_tokens: 40}
  - {name: minute, key: sk-minute, max_tokens_per_minute: 100}
"""


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(Capacity(8, 8))


@pytest.fixture(autouse=True)
def key_file(settings: Settings, tmp_path: Path) -> Path:
    path = tmp_path / "keys.yaml"
    path.write_text(KEYS)
    settings.key_file = KeyFile(str(path))
    return path


def of(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


@pytest.mark.parametrize("key", ["", "sk-", "large", "sk-largeX"])
async def test_without_a_key_of_the_file_there_is_a_401(
    client: httpx.AsyncClient, engine: FakeEngine, key: str
) -> None:
    assert (await client.post("/generate", json=BODY, headers=of(key))).status_code == 401
    assert (await client.post("/generate", json=BODY)).status_code == 401
    assert engine.requests == []


async def test_a_request_counts_for_the_key_and_its_weight(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    for key in ("sk-large", "sk-small"):
        assert (await client.post("/generate", json=BODY, headers=of(key))).status_code == 200
    large, small = engine.requests
    assert (large.client, large.weight) == ("large@127.0.0.1", 3)
    assert (small.client, small.weight) == ("small@127.0.0.1", 1)


async def test_the_key_of_the_settings_is_good_too(
    client: httpx.AsyncClient, engine: FakeEngine, settings: Settings
) -> None:
    assert (await client.get("/health")).status_code == 200
    assert (await client.post("/generate", json=BODY, headers=of("sk-large"))).status_code == 200
    assert engine.requests[0].weight == 3


async def test_a_key_has_at_most_so_many_texts_at_once(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.wait_before = 0
    asked = [
        asyncio.create_task(live.post("/generate", json=BODY, headers=of("sk-small")))
        for _ in range(2)
    ]
    await until(lambda: len(engine.requests) == 2)
    refused = await live.post("/generate", json=BODY, headers=of("sk-small"))
    assert refused.status_code == 429
    assert "may have 2 texts at once" in refused.text
    assert refused.headers["retry-after"] == "1"
    other = asyncio.create_task(live.post("/generate", json=BODY, headers=of("sk-large")))
    engine.go.set()
    assert [(await one).status_code for one in (*asked, other)] == [200] * 3
    again = await live.post("/generate", json=BODY, headers=of("sk-small"))
    assert again.status_code == 200


async def test_a_key_has_at_most_so_many_tokens_a_text(
    client: httpx.AsyncClient, engine: FakeEngine
) -> None:
    async def ask(key: str, **fields: Any) -> httpx.Response:
        body = {"prompt": "a" * 30, **fields}
        return await client.post("/v1/completions", json=body, headers=of(key))

    refused = await ask("sk-small", max_tokens=11)
    assert refused.status_code == 400
    assert "`max_total_tokens` of small" in refused.text
    assert (await ask("sk-small", max_tokens=10)).status_code == 200
    # Where a client leaves it open, it gets what the key may have.
    assert (await ask("sk-small")).status_code == 200
    assert (await ask("sk-large", max_tokens=11)).status_code == 200
    assert [one.max_new_tokens for one in engine.requests] == [10, 10, 11]


async def test_a_key_has_at_most_so_many_tokens_a_minute(
    live: httpx.AsyncClient, engine: FakeEngine
) -> None:
    engine.wait_before = 0
    asked = asyncio.create_task(live.post("/generate", json=BODY, headers=of("sk-minute")))
    await until(lambda: len(engine.requests) == 1)
    reservation = engine.requests[0].reservation
    assert reservation is not None
    reservation.n_tokens = 120  # as the scheduler counts them
    engine.go.set()
    assert (await asked).status_code == 200
    refused = await live.post("/generate", json=BODY, headers=of("sk-minute"))
    assert refused.status_code == 429
    assert "100 tokens a minute" in refused.text
    assert 1 < int(refused.headers["retry-after"]) <= 13
    assert (await live.post("/generate", json=BODY, headers=of("sk-large"))).status_code == 200


class TestSalts:
    async def salts(self, client: httpx.AsyncClient, engine: FakeEngine, key: str) -> Any:
        await client.post("/generate", json=BODY, headers=of(key))
        return engine.requests[-1].salts

    async def test_without_the_flag_prefixes_are_shared(
        self, client: httpx.AsyncClient, engine: FakeEngine
    ) -> None:
        assert await self.salts(client, engine, "sk-large") == ()

    async def test_with_it_each_key_has_its_own(
        self, client: httpx.AsyncClient, engine: FakeEngine, settings: Settings
    ) -> None:
        settings.prefix_cache_salt = "tenant"
        (large,) = await self.salts(client, engine, "sk-large")
        (small,) = await self.salts(client, engine, "sk-small")
        assert (large.start, large.end) == (0, 1)
        assert large.digest != small.digest
        assert await self.salts(client, engine, "sk-large") == (large,)

    async def test_a_client_may_salt_its_own(
        self, client: httpx.AsyncClient, engine: FakeEngine, api: Api
    ) -> None:
        client.headers["authorization"] = "Bearer sk-large"
        for salt in ("one", "one", "two", None, ""):
            assert (await api.complete("Hi", cache_salt=salt)).status_code == 200
        salts = [one.salts for one in engine.requests]
        assert salts[0] == salts[1]
        assert len(salts[0]) == 1
        assert salts[2] != salts[0]
        assert salts[3] == salts[4] == ()
        assert "x-tgi-ignored" not in (await api.complete("Hi", cache_salt="one")).headers
