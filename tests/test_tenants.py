"""The tenant of a request: believed from trusted proxies only."""

from __future__ import annotations

from typing import Any

import pytest

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
