"""Grafana's dashboard: provisioned, and each query of it answered by Prometheus."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.podman import ROOT
from tests.deploy.test_chart import documented_metrics
from tests.deploy.test_compose import COMPOSE, mounts
from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour

DOCKER = ROOT / "docker"
PANELS = json.loads((DOCKER / "grafana" / "dashboard.json").read_text())["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
METRIC = re.compile(r"\btgi_\w+")
SECONDS_TO_SCRAPE = 60


def test_it_is_provisioned() -> None:
    provider = yaml.safe_load((DOCKER / "grafana" / "provider.yaml").read_text())
    source = yaml.safe_load((DOCKER / "grafana" / "datasource.yaml").read_text())
    folder = provider["providers"][0]["options"]["path"]
    targets = dict(mounts(COMPOSE["services"]["grafana"]))
    assert targets["./grafana/dashboard.json"] == f"{folder}/dashboard.json"
    uids = {panel["datasource"]["uid"] for panel in PANELS}
    assert uids == {source["datasources"][0]["uid"]}


@pytest.mark.parametrize("query", QUERIES)
def test_a_query_is_of_metrics_that_there_are(query: str) -> None:
    names = METRIC.findall(query)
    assert names
    known = documented_metrics()
    for name in names:
        assert name in known or re.sub(r"_(bucket|sum|count)$", "", name) in known


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[httpx.Client]:
    """Prometheus with the compose file's configuration, but for where the server is."""
    configuration = yaml.safe_load((DOCKER / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configuration["scrape_configs"][0]["static_configs"] = [{"targets": [target]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configuration))
    shutil.copy(ROOT / "charts" / "tgi-async" / "files" / "alerts.yaml", folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=log,
        )
    try:
        with httpx.Client(base_url=f"http://{address}/api/v1", trust_env=False) as client:
            yield client
    finally:
        process.terminate()
        process.wait(30)


def numbers(client: httpx.Client, query: str) -> list[float]:
    """What a query comes to now; nothing where it is NaN or has no series."""
    try:
        reply = client.get("/query", params={"query": query.replace("$__rate_interval", "30s")})
    except httpx.TransportError:  # it starts
        return []
    if reply.status_code != 200 and "not ready" in reply.text.lower():
        return []
    assert reply.status_code == 200, reply.text
    found: list[dict[str, Any]] = reply.json()["data"]["result"]
    values = [float(one["value"][1]) for one in found]
    return [value for value in values if value == value]


@pytest.mark.full
@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_answers_each_query_about_a_server(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir()
    (tmp_path / "prometheus").mkdir()
    server = FakeServer(tmp_path / "server", Behaviour())
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 5}}
    with prometheus(tmp_path / "prometheus", server.url.removeprefix("http://")) as client:
        deadline = time.monotonic() + SECONDS_TO_SCRAPE
        unanswered = set(QUERIES)
        while unanswered:
            assert time.monotonic() < deadline, unanswered
            assert httpx.post(f"{server.url}/generate", json=body).status_code == 200
            assert httpx.post(f"{server.url}/generate", json={"inputs": ""}).status_code == 422
            unanswered = {query for query in unanswered if not numbers(client, query)}
            time.sleep(0.5)
        groups = client.get("/rules").json()["data"]["groups"]
        states = {rule["name"]: rule["state"] for group in groups for rule in group["rules"]}
        assert set(states.values()) == {"inactive"}
        assert "TgiAsyncStuck" in states
    server.signal(signal.SIGTERM)
    assert server.ended() == 0
