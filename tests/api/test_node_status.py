from __future__ import annotations

import httpx
import pytest

from tgi_async.api.node_status import NodeStatus


def client_of(*, taken: bool) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(NodeStatus(lambda: taken, "gpu1"))
    return httpx.AsyncClient(transport=transport, base_url="http://node")


@pytest.mark.parametrize("path", ["/health", "/health/ready"])
async def test_a_node_is_ready_once_the_leader_has_it(path: str) -> None:
    async with client_of(taken=True) as client:
        assert (await client.get(path)).status_code == 200
    async with client_of(taken=False) as client:
        reply = await client.get(path)
    assert reply.status_code == 503
    assert reply.json() == {
        "error": "The node waits for the leader, gpu1",
        "error_type": "healthcheck",
    }


@pytest.mark.parametrize("taken", [True, False])
async def test_a_node_that_waits_lives(taken: bool) -> None:
    async with client_of(taken=taken) as client:
        assert (await client.get("/health/live")).status_code == 200


async def test_requests_are_sent_to_the_leader() -> None:
    async with client_of(taken=True) as client:
        assert "ask the leader, gpu1" in (await client.post("/generate")).json()["error"]
        error = (await client.post("/v1/chat/completions")).json()["error"]
    assert error["code"] == "node"
