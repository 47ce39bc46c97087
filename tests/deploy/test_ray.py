"""Ray Serve in its HAProxy mode, over fake workers: what happens to streams when replicas go."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.ray_cluster import DRAINING_SECONDS, Cluster, until
from tests.doubles.fake_engine_run import alive
from tests.doubles.fake_ray import variables
from tests.doubles.fake_worker import Behaviour

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

N_TOKENS = 120
STEP_SECONDS = 0.05


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    body = "RAY_SERVE_INGRESS_REQUEST_ROUTER_FORWARD_BODY"
    size = "RAY_SERVE_HAPROXY_INGRESS_REQUEST_ROUTER_BUFSIZE"
    tenant = {"RAY_SERVE_SESSION_ID_HEADER_KEY": "x-tenant"}
    found = Cluster(tmp_path_factory.mktemp("ray"), **{body: "1", size: "65536"}, **tenant)
    try:
        found.start(n_gpus=4)
        yield found
    finally:
        found.stop()


class Site:
    """An application of fake workers, and the workers that it started."""

    def __init__(self, cluster: Cluster, folder: Path, name: str) -> None:
        self.cluster, self.name = cluster, name
        self._folder = folder
        self.url = f"{cluster.url}/{name}"

    def deploy(
        self,
        args: dict[str, Any] | None = None,
        behaviour: Behaviour | None = None,
        prepare: str = "",
        **options: Any,
    ) -> None:
        slow = Behaviour(step_seconds=STEP_SECONDS, n_blocks=4096, max_total_tokens=1024)
        env = variables(self._folder, behaviour or slow, prepare)
        env["RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD"] = "0"
        self.cluster.deploy(
            {
                "applications": [
                    {
                        "name": self.name,
                        "route_prefix": f"/{self.name}",
                        "import_path": "tests.doubles.fake_ray:app",
                        "runtime_env": {"env_vars": env},
                        "args": args or {},
                        "deployments": [
                            {
                                "name": "server",
                                "ray_actor_options": {"num_cpus": 0.1},
                                "health_check_period_s": 1,
                                **options,
                            }
                        ],
                    }
                ]
            }
        )

    @property
    def worker_pids(self) -> list[int]:
        journal = self._folder / "journal"
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line)["pid"] for line in lines]

    async def stream(self, client: httpx.AsyncClient, n: int) -> tuple[int, bool]:
        """Tokens of a stream, and whether it came to its end."""
        body = {"inputs": "Hi", "parameters": {"max_new_tokens": n}}
        n_tokens, last = 0, ""
        try:
            url = f"{self.url}/generate_stream"
            async with client.stream("POST", url, json=body) as reply:
                assert reply.status_code == 200, await reply.aread()
                async for line in reply.aiter_lines():
                    if line.startswith("data:"):
                        n_tokens, last = n_tokens + 1, line
        except httpx.TransportError:
            return n_tokens, False
        return n_tokens, '"generated_text":"' in last

    def n_running(self, port: int) -> int:
        """Requests that a replica runs, by its own count."""
        metrics = httpx.get(f"http://127.0.0.1:{port}/{self.name}/metrics").text
        found = re.search(r"^tgi_async_requests_running (\d+)", metrics, re.M)
        assert found, metrics
        return int(found[1])


@pytest.fixture
def site(cluster: Cluster, tmp_path: Path, request: pytest.FixtureRequest) -> Site:
    return Site(cluster, tmp_path, f"a{abs(hash(request.node.name)) % 10**6}")


def client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None))


async def test_a_stream_has_the_short_way_to_the_server_that_serve_runs(site: Site) -> None:
    site.deploy()
    site.cluster.until_running(site.name, 1)
    async with client() as asking:
        assert (await asking.get(f"{site.url}/info")).headers["x-direct"] == "True"
        assert await site.stream(asking, 20) == (20, True)


async def test_a_killed_replica_cuts_its_own_streams_only(site: Site) -> None:
    site.deploy(num_replicas=2)
    one, other = site.cluster.until_running(site.name, 2)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, N_TOKENS)) for _ in range(12)]
        while site.n_running(one.port) + site.n_running(other.port) < 12:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        n_cut = site.n_running(one.port)
        assert 0 < n_cut < 12
        workers = site.worker_pids
        os.kill(one.pid, signal.SIGKILL)
        ended = await asyncio.gather(*streams)
        assert sum(not complete for _, complete in ended) == n_cut
        assert [n for n, complete in ended if complete] == [N_TOKENS] * (12 - n_cut)
        # Its worker died with it; a new request goes to the other one.
        until(lambda: sum(alive(pid) for pid in workers) <= 1, "its worker lives")
        assert await site.stream(asking, 5) == (5, True)
    site.cluster.until_running(site.name, 2)


async def test_a_client_whose_replica_was_killed_goes_on_at_another_one(site: Site) -> None:
    site.deploy({"resume-window": 60}, num_replicas=2)
    replicas = site.cluster.until_running(site.name, 2)
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": N_TOKENS}}
    texts: list[str] = []
    headers: dict[str, str] = {}

    async def read(asking: httpx.AsyncClient) -> httpx.Response:
        url, data, id = f"{site.url}/generate_stream", "", ""
        async with asking.stream("POST", url, json=body, headers=headers) as reply:
            async for line in reply.aiter_lines():
                name, _, value = line.partition(":")
                if name == "data":
                    data = value
                elif name == "id":
                    id = value.strip()
                elif not line and data:
                    texts.append(json.loads(data)["token"]["text"])
                    headers["Last-Event-ID"], data = id, ""
                if len(texts) == 20 and not killed:
                    (its,) = [one for one in replicas if site.n_running(one.port)]
                    os.kill(its.pid, signal.SIGKILL)
                    killed.append(its.pid)
        return reply

    killed: list[int] = []
    async with client() as asking:
        with pytest.raises(httpx.TransportError):
            await read(asking)
        assert 20 <= len(texts) < N_TOKENS
        resumed = await read(asking)
        assert resumed.headers["x-tgi-resumed"] == "recomputed"
        assert int(resumed.headers["x-pid"]) not in killed
        whole = await asking.post(f"{site.url}/generate", json=body)
        assert "".join(texts) == whole.json()["generated_text"]


async def test_a_scale_down_cuts_no_stream(site: Site) -> None:
    site.deploy(num_replicas=2)
    one, other = site.cluster.until_running(site.name, 2)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, 2 * N_TOKENS)) for _ in range(12)]
        while site.n_running(one.port) + site.n_running(other.port) < 12:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert site.n_running(one.port) < 12
        began = time.monotonic()
        await asyncio.to_thread(site.deploy, num_replicas=1)
        # Both go on, and it is no accident of a slow command.
        ended = await asyncio.gather(*streams)
        assert ended == [(2 * N_TOKENS, True)] * 12
        assert time.monotonic() - began > DRAINING_SECONDS
    site.cluster.until_running(site.name, 1)
    until(lambda: sum(alive(pid) for pid in site.worker_pids) == 1, "a worker is left")


async def test_an_application_that_is_taken_out_of_the_file_answers_what_it_has(site: Site) -> None:
    site.deploy()
    site.cluster.until_running(site.name, 1)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, 2 * N_TOKENS)) for _ in range(4)]
        while site.n_running(site.cluster.replicas(site.name)[0].port) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        await asyncio.to_thread(site.cluster.deploy, {"applications": []})
        assert await asyncio.gather(*streams) == [(2 * N_TOKENS, True)] * 4
    until(lambda: not any(alive(pid) for pid in site.worker_pids), "a worker is left")


async def test_a_changed_setting_replaces_the_replicas_without_losing_a_request(
    site: Site,
) -> None:
    site.deploy({"max-total-tokens": 500}, num_replicas=2, max_surge_percent=100)
    before = site.cluster.until_running(site.name, 2)
    async with client() as asking:
        assert (await asking.get(f"{site.url}/info")).json()["max_total_tokens"] == 500
        streams = [asyncio.create_task(site.stream(asking, N_TOKENS)) for _ in range(8)]
        changed = {"max-total-tokens": 600}
        await asyncio.to_thread(site.deploy, changed, num_replicas=2, max_surge_percent=100)
        n_short = 0
        deadline = time.monotonic() + 120
        while True:
            assert await site.stream(asking, 3) == (3, True)
            n_short += 1
            now = await asyncio.to_thread(site.cluster.replicas, site.name)
            if len(now) == 2 and not {one.pid for one in now} & {one.pid for one in before}:
                break
            assert time.monotonic() < deadline, now
        assert n_short > 10
        assert await asyncio.gather(*streams) == [(N_TOKENS, True)] * 8
        assert (await asking.get(f"{site.url}/info")).json()["max_total_tokens"] == 600


async def test_replicas_follow_the_load(site: Site) -> None:
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_ongoing_requests": 4,
        "upscale_delay_s": 1,
        "downscale_delay_s": 1,
        "look_back_period_s": 2,
        "metrics_interval_s": 0.5,
    }
    site.deploy(autoscaling_config=scaling)
    site.cluster.until_running(site.name, 1)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, 600)) for _ in range(8)]
        await asyncio.to_thread(site.cluster.until_running, site.name, 2)
        assert await asyncio.gather(*streams) == [(600, True)] * 8
    site.cluster.until_running(site.name, 1)


async def test_a_worker_that_dies_keeps_its_replica_and_its_streams(site: Site) -> None:
    site.deploy()
    (only,) = site.cluster.until_running(site.name, 1)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, N_TOKENS)) for _ in range(4)]
        while site.n_running(only.port) < 4:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        os.kill(site.worker_pids[-1], signal.SIGKILL)
        assert await asyncio.gather(*streams) == [(N_TOKENS, True)] * 4
    assert site.cluster.until_running(site.name, 1) == [only]


def test_a_replica_whose_workers_do_not_come_back_is_replaced(site: Site) -> None:
    site.deploy(behaviour=Behaviour(refuse=dict.fromkeys((2, 3, 4), "not again")))
    (before,) = site.cluster.until_running(site.name, 1)
    os.kill(site.worker_pids[-1], signal.SIGKILL)

    def replaced() -> bool:
        return before.pid not in [one.pid for one in site.cluster.replicas(site.name)]

    until(replaced, "it stays")
    site.cluster.until_running(site.name, 1)


def test_a_replica_has_a_shard_for_each_gpu_that_ray_gives_it(site: Site) -> None:
    site.deploy(
        ray_actor_options={"num_cpus": 0.1, "num_gpus": 2},
        placement_group_bundles=[{"CPU": 0.1, "GPU": 2}],
        placement_group_strategy="STRICT_PACK",
    )
    site.cluster.until_running(site.name, 1)
    assert len(site.worker_pids) == 2
    reply = httpx.post(f"{site.url}/generate", json={"inputs": "Hi"}, timeout=60)
    assert reply.status_code == 200


@pytest.mark.parametrize(
    ("args", "prepare", "message"),
    [
        ({"modelid": "x"}, "", "'modelid' in args is no flag of tgi-async serve. Did you mean"),
        ({"max-total-tokens": 9999}, "", "--max-total-tokens must be at most 1024"),
        (
            {"model-id": "a/b"},
            "import sys; print('Error: no model a/b', file=sys.stderr); sys.exit(1)",
            "Error: no model a/b",
        ),
    ],
)
def test_what_is_wrong_at_a_start_is_what_serve_shows(
    site: Site, args: dict[str, Any], prepare: str, message: str
) -> None:
    site.deploy(args, prepare=prepare)
    until(
        lambda: site.cluster.application(site.name).get("status") == "DEPLOY_FAILED",
        lambda: site.cluster.application(site.name),
    )
    assert message in re.sub(r"\s+", " ", site.cluster.serve("status"))


async def test_requests_go_to_the_replica_that_has_their_prefix(site: Site) -> None:
    site.deploy({"routing": "prefix", "max-total-tokens": 1000}, num_replicas=2)
    site.cluster.until_running(site.name, 2)
    went: dict[int, set[str]] = {}
    async with client() as asking:

        async def ask(url: str, body: dict[str, Any], **headers: str) -> str:
            reply = await asking.post(f"{site.url}/{url}", json=body, headers=headers)
            assert reply.status_code == 200, reply.text
            return reply.headers["x-pid"]

        for turn in range(5):
            for prefix in range(6):
                text = f"{prefix} " * 200 + str(turn)
                body = {"inputs": text, "parameters": {"max_new_tokens": 2, "seed": turn}}
                went.setdefault(prefix, set()).add(await ask("generate", body))
        assert [len(pids) for pids in went.values()] == [1] * 6
        assert len(set.union(*went.values())) == 2
        # Short prompts of a tenant stay together, too.
        short = {"prompt": "Hi", "max_tokens": 2}
        for tenant in "abcd":
            headers = {"x-tenant": tenant}
            asked = {await ask("v1/completions", short, **headers) for _ in range(4)}
            assert len(asked) == 1
        # Others are spread, and what is no POST needs no guide.
        assert len({await ask("v1/completions", short) for _ in range(8)}) == 2
        assert (await asking.get(f"{site.url}/info")).status_code == 200


async def test_a_replica_that_is_killed_under_a_guide_loses_its_own_streams_only(
    site: Site,
) -> None:
    site.deploy({"routing": "prefix"}, num_replicas=2)
    one, other = site.cluster.until_running(site.name, 2)
    async with client() as asking:
        streams = [asyncio.create_task(site.stream(asking, N_TOKENS)) for _ in range(8)]
        while site.n_running(one.port) + site.n_running(other.port) < 8:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        n_cut = site.n_running(one.port)
        assert 0 < n_cut < 8
        os.kill(one.pid, signal.SIGKILL)
        ended = await asyncio.gather(*streams)
        assert sum(not complete for _, complete in ended) == n_cut
        site.cluster.until_running(site.name, 2)
        assert await asyncio.gather(*(site.stream(asking, 5) for _ in range(8))) == [(5, True)] * 8


def test_a_routing_that_is_none_is_refused(site: Site) -> None:
    site.deploy({"routing": "random"})
    until(
        lambda: site.cluster.application(site.name).get("status") == "DEPLOY_FAILED",
        lambda: site.cluster.application(site.name),
    )
    said = re.sub(r"\s+", " ", site.cluster.serve("status"))
    assert "'routing' in args must be one of leastconn, prefix. Given: 'random'." in said
