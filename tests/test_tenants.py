"""The tenant of a request: believed from trusted proxies only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest

from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour
from tgi_async.proxies import Trusted
from tgi_async.tenants import MOST_CHARACTERS, TENANT, Tenants


class App:
    """Remembers the tenant of a request that gets through."""

    def __init__(self) -> None:
        self.tenants: list[str | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.tenants.append(scope.get(TENANT))


async def asked(app: App, peer: str, *headers: tuple[bytes, bytes]) -> int:
    """The status of a refusal, 0 without one."""
    status = 0

    async def send(message: Any) -> None:
        nonlocal status
        status = message.get("status", status)

    async def receive() -> Any:
        raise AssertionError

    scope = {"type": "http", "client": (peer, 5), "headers": list(headers)}
    await Tenants(app, "X-Tenant", Trusted(["10.0.0.0/8"]))(scope, receive, send)
    return status


async def test_a_trusted_proxy_names_the_tenant() -> None:
    app = App()
    assert await asked(app, "10.0.0.7", (b"x-tenant", b"ann")) == 0
    assert await asked(app, "10.0.0.7") == 0
    assert app.tenants == ["ann", None]


async def test_from_others_the_header_counts_for_nothing() -> None:
    app = App()
    assert await asked(app, "192.0.2.1", (b"x-tenant", b"ann"), (b"x-tenant", b"bob")) == 0
    assert app.tenants == [None]


@pytest.mark.parametrize(
    "values",
    [[b"ann", b"bob"], [b""], [b"a b"], [b"\xe4"], [b"a\x01"], [b"a" * (MOST_CHARACTERS + 1)]],
)
async def test_what_names_no_single_tenant_is_refused(values: list[bytes]) -> None:
    app = App()
    headers = [(b"x-tenant", value) for value in values]
    assert await asked(app, "10.0.0.7", *headers) == 400
    assert app.tenants == []


N_ROWS = 4
N_NEW = 16
MOST_APART = 10
"""Answers that one of two tenants may be ahead: 2U, where U is twice the tokens of four requests
and of one step, and service is one for a token of a prompt and two for each that is emitted."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeServer]:
    folder = tmp_path_factory.mktemp("server")
    keys = folder / "keys.yaml"
    keys.write_text("keys: [{name: gateway, key: sk-gateway}]")
    flags = {
        "--api-keys-file": str(keys),
        "--tenant-header": "X-Tenant",
        "--forwarded-allow-ips": "127.0.0.1",
        "--prefix-cache-salt": "tenant",
        "--max-concurrent-requests": str(N_ROWS),
        "--max-queued-requests": "200",
    }
    given = [part for pair in flags.items() for part in pair]
    server = FakeServer(folder, Behaviour(step_seconds=0.002), *given)
    yield server
    server.process.terminate()
    server.ended()


@pytest.fixture
async def gateway(server: FakeServer) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(
        base_url=server.url,
        headers={"authorization": "Bearer sk-gateway"},
        timeout=60,
        limits=httpx.Limits(max_connections=100),
    ) as client:
        yield client


async def complete(client: httpx.AsyncClient, tenant: str, prompt: str) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": N_NEW, "ignore_eos": True}
    reply = await client.post("/v1/completions", json=body, headers={"x-tenant": tenant})
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    return found


async def test_the_gateway_needs_its_key(server: FakeServer) -> None:
    async with httpx.AsyncClient(base_url=server.url) as client:
        assert (await client.post("/v1/completions", json={"prompt": "a"})).status_code == 401


async def test_tenants_that_wait_get_equal_service_whatever_each_asks_for(
    gateway: httpx.AsyncClient,
) -> None:
    done: list[str] = []

    async def ask(tenant: str, number: int) -> None:
        await complete(gateway, tenant, f"{number:02}")
        done.append(tenant)

    async with asyncio.TaskGroup() as group:
        for number in range(60):
            group.create_task(ask("large", number))
        for number in range(20):
            group.create_task(ask("small", number))
    # While some of both wait; small has none waiting when all but those on rows are answered.
    last = max(place for place, name in enumerate(done) if name == "small")
    until = next(at for at in range(last + 1) if done[:at].count("small") >= 20 - N_ROWS)
    for at in range(until):
        ahead = done[:at].count("large") - done[:at].count("small")
        assert abs(ahead) <= MOST_APART + N_ROWS, done


async def test_no_tenant_sees_what_another_has_asked(gateway: httpx.AsyncClient) -> None:
    """CVE-2025-46570: a prompt that others have had is answered sooner."""

    async def n_cached(tenant: str) -> int:
        usage = (await complete(gateway, tenant, "a long prompt that is a secret"))["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert await n_cached("ann") == 0
    assert await n_cached("eve") == 0
    assert await n_cached("ann") > 0
    assert await n_cached("eve") > 0
    assert await n_cached("bob") == 0
