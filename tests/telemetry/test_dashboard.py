"""TGI's Grafana dashboard, against the metrics of a server that has had something to do."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import httpx
import pytest

from tests.doubles.fake_server import FakeServer
from tests.doubles.fake_worker import Behaviour

N_REQUESTS = 12
IDLE_AFTERWARDS = ("tgi_queue_size", "tgi_batch_current_size", "tgi_batch_current_max_tokens")


class Series(NamedTuple):
    """What a query reads: samples of this name, with these values of labels, and these labels."""

    name: str
    values: frozenset[tuple[str, str]]
    labels: frozenset[str]


READ = """\
tgi_batch_concat                                  |                 | reason
tgi_batch_concat_duration_bucket                  | method=decode   | le
tgi_batch_current_max_tokens                      |                 |
tgi_batch_current_size                            |                 |
tgi_batch_decode_duration_bucket                  | method=decode   | le
tgi_batch_filter_duration_bucket                  | method=decode   | le
tgi_batch_forward_duration_bucket                 | method=decode   | le
tgi_batch_inference_duration_bucket               | method=decode   | le
tgi_batch_inference_duration_bucket               | method=prefill  | le
tgi_queue_size                                    |                 |
tgi_request_count                                 |                 |
tgi_request_duration_bucket                       |                 | le
tgi_request_failure                               |                 | err
tgi_request_generated_tokens_bucket               |                 | le
tgi_request_generated_tokens_count                |                 |
tgi_request_generated_tokens_sum                  |                 |
tgi_request_input_length_bucket                   |                 | le
tgi_request_mean_time_per_token_duration_bucket   |                 | le
tgi_request_queue_duration_bucket                 |                 | le
tgi_request_skipped_tokens_bucket                 |                 | le
tgi_request_success                               |                 |
"""
"""What the panels of TGI's dashboard (assets/tgi_grafana.json, TGI 3.3) read: a metric, the labels
that select its series, and the labels that it is summed by."""


def every_series() -> list[Series]:
    found = []
    for line in READ.splitlines():
        name, selected, by = (column.strip() for column in line.split("|"))
        pairs = (pair.partition("=") for pair in selected.split(", ") if pair)
        values = frozenset((label, value) for label, _, value in pairs)
        found.append(Series(name, values, frozenset(filter(None, by.split(", ")))))
    return found


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
