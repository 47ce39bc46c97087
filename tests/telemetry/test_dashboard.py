"""TGI's Grafana dashboard, against the metrics of a server that has had something to do."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from tests.fake_server import FakeServer
from tests.fake_worker import Behaviour

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("TGI_ASYNC_SHARED", ROOT.parent / "shared"))
DASHBOARD = SHARED / "data" / "tgi-grafana.json"
N_REQUESTS = 12
IDLE_AFTERWARDS = ("tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens")


class Series(NamedTuple):
    """What a query reads: samples of this name, with these values of labels, and these labels."""

    name: str
    values: frozenset[tuple[str, str]]
    labels: frozenset[str]


def queries(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if isinstance(node.get("expr"), str):
            yield node["expr"]
        node = list(node.values())
    if isinstance(node, list):
        for one in node:
            yield from queries(one)


def read_by(query: str) -> Iterator[Series]:
    by = {name for names in re.findall(r"\bby \((.*?)\)", query) for name in names.split(", ")}
    for name, selector in re.findall(r"(tgi_\w+)\{(.*?)\}", query):
        values = set(re.findall(r'(\w+)="(.*?)"', selector))
        # Prometheus adds this one when it scrapes.
        values -= {pair for pair in values if pair[0] == "container"}
        yield Series(name, frozenset(values), frozenset(by))


def every_series() -> list[Series]:
    if not DASHBOARD.is_file():
        return []
    found = queries(json.loads(DASHBOARD.read_text()))
    return sorted({one for query in found for one in read_by(query)}, key=str)


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, dict[str, str], float]]:
    """Name, labels and value of all that /metrics has after a run."""
    server = FakeServer(tmp_path_factory.mktemp("d"), Behaviour(step_seconds=0.002))
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:

            def ask(place: int) -> int:
                parameters = {"max_new_tokens": 8 + 4 * place}
                body = {"inputs": f"{place} " + "word " * 8, "parameters": parameters}
                return client.post("/generate", json=body).status_code

            with ThreadPoolExecutor(N_REQUESTS) as pool:
                assert set(pool.map(ask, range(N_REQUESTS))) == {200}
            assert ask(1000) == 422
            text = client.get("/metrics").text
    finally:
        server.process.terminate()
        server.ended()
    found = re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.MULTILINE)
    return [
        (name, dict(re.findall(r'(\w+)="(.*?)"', labels)), float(value))
        for name, labels, value in found
    ]


def test_the_dashboard_was_read() -> None:
    if not DASHBOARD.is_file():
        pytest.skip(f"no dashboard at {DASHBOARD}")
    assert len(every_series()) > 20


@pytest.mark.parametrize("series", every_series(), ids=lambda one: one.name)
def test_every_panel_of_tgis_dashboard_fills(series: Series, samples: Any) -> None:
    matching = [
        (labels, value)
        for name, labels, value in samples
        if name == series.name and series.values <= set(labels.items())
    ]
    assert matching
    assert all(series.labels <= set(labels) for labels, _ in matching)
    if series.name not in IDLE_AFTERWARDS:
        assert max(value for _, value in matching) > 0
