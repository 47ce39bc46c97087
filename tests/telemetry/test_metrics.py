from __future__ import annotations

import re
from types import SimpleNamespace

import pytest

from tests.telemetry.test_instruments import samples
from tgi_async.telemetry.metrics import Metrics
from tgi_async.wire.messages import Sampled

IDLE = SimpleNamespace(
    n_running=0,
    n_waiting=0,
    used_blocks=0,
    cached_blocks=0,
    n_blocks=8,
    block_size=16,
    resident_tokens=0,
    worker_restarts=0,
)


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(max_input_tokens=1000, max_total_tokens=2000)


def read(metrics: Metrics) -> dict[tuple[str, str], float]:
    return samples(metrics.expose(IDLE).decode())


def test_what_the_dashboards_ask_for_is_there_before_the_first_request(metrics: Metrics) -> None:
    text = metrics.expose(IDLE).decode()
    for name in (
        "tgi_request_count",
        "tgi_request_success",
        "tgi_queue_size",
        "tgi_batch_current_size",
        "tgi_batch_current_max_tokens",
        "tgi_request_queue_duration_bucket",
        "tgi_request_duration_bucket",
        "tgi_request_mean_time_per_token_duration_bucket",
        "tgi_request_input_length_bucket",
        "tgi_request_generated_tokens_bucket",
        "tgi_request_skipped_tokens_bucket",
    ):
        assert f"\n{name}" in text


def test_no_name_ends_in_total(metrics: Metrics) -> None:
    metrics.request_received()
    assert not [name for name, _ in read(metrics) if name.endswith("_total")]


def test_buckets_are_those_of_tgi(metrics: Metrics) -> None:
    values = read(metrics)
    durations = [label for name, label in values if name == "tgi_request_duration_bucket"]
    assert len(durations) == 36
    assert float(durations[0]) == pytest.approx(0.00015)
    assert float(durations[34]) == pytest.approx(145.6, rel=1e-3)
    inputs = [label for name, label in values if name == "tgi_request_input_length_bucket"]
    assert inputs[:2] == ["10", "20"]
    assert inputs[-2:] == ["1000", "+Inf"]
    assert len([1 for name, _ in values if name == "tgi_batch_next_size_bucket"]) == 1025


def test_a_request_from_arrival_to_answer(metrics: Metrics) -> None:
    metrics.request_received()
    metrics.request_validated(0.25, 30, 100)
    metrics.admitted(16)
    metrics.request_generated(0.5, 2.0, 4)
    metrics.request_succeeded(3.0)
    values = read(metrics)
    assert values["tgi_request_count", ""] == 1
    assert values["tgi_request_success", ""] == 1
    assert values["tgi_request_validation_duration_sum", ""] == 0.25
    assert values["tgi_request_input_length_sum", ""] == 30
    assert values["tgi_request_max_new_tokens_sum", ""] == 100
    assert values["tgi_async_cached_tokens_sum", ""] == 16
    assert values["tgi_request_queue_duration_sum", ""] == 0.5
    assert values["tgi_request_inference_duration_sum", ""] == 2
    assert values["tgi_request_generated_tokens_sum", ""] == 4
    assert values["tgi_request_mean_time_per_token_duration_sum", ""] == 0.5
    assert values["tgi_request_duration_sum", ""] == 3


def test_accepted_drafts_are_the_skipped_tokens_of_each_row_of_a_step(metrics: Metrics) -> None:
    metrics.sampled([Sampled(0, [1]), Sampled(1, [1, 2, 3])])  # two of a grammar, and no drafts
    values = read(metrics)
    assert values["tgi_request_skipped_tokens_count", ""] == 2
    assert values["tgi_request_skipped_tokens_sum", ""] == 0
    drafting = Metrics(
        max_input_tokens=1000, max_total_tokens=2000, speculation="suffix", max_drafts=3
    )
    drafting.sampled(
        [
            Sampled(0, [1]),
            Sampled(1, [1], n_drafts=3),
            Sampled(2, [1, 2, 3], n_computed=2, n_drafts=3),
            Sampled(3, [1, 2], n_computed=1, n_drafts=1),
        ]
    )
    values = read(drafting)
    assert values["tgi_request_skipped_tokens_count", ""] == 4
    assert values["tgi_request_skipped_tokens_sum", ""] == 3
    assert values["tgi_request_skipped_tokens_bucket", "0"] == 2
    assert values["tgi_request_skipped_tokens_bucket", "1"] == 3


def test_drafts_are_counted_by_place(metrics: Metrics) -> None:
    drafting = Metrics(
        max_input_tokens=1000, max_total_tokens=2000, speculation="suffix", max_drafts=3
    )
    drafting.sampled([Sampled(0, [1, 2], n_computed=1, n_drafts=2)])
    text = drafting.expose(IDLE).decode()
    assert 'tgi_async_drafts{method="suffix",position="2"} 1\n' in text
    assert "tgi_async_drafts" not in metrics.expose(IDLE).decode()


def test_a_generation_without_tokens_has_no_time_per_token(metrics: Metrics) -> None:
    metrics.request_generated(0.5, 2.0, 0)
    assert read(metrics)["tgi_request_mean_time_per_token_duration_count", ""] == 0


def test_failures_are_distinguished(metrics: Metrics) -> None:
    metrics.request_failed("dropped")
    metrics.request_failed("overloaded")
    metrics.request_failed("dropped")
    values = read(metrics)
    assert values["tgi_request_failure", "dropped"] == 2
    assert values["tgi_request_failure", "overloaded"] == 1


def test_a_step_with_prompt_tokens_is_a_prefill(metrics: Metrics) -> None:
    metrics.step_sent(n_prefill_tokens=9, n_admitted=2, n_decode=3, plan_seconds=0.75)
    metrics.step(
        n_prefill_tokens=9,
        seconds=0.5,
        forward_seconds=0.25,
        sample_seconds=0.125,
        results_seconds=0.0625,
    )
    metrics.step_sent(n_prefill_tokens=0, n_admitted=0, n_decode=5, plan_seconds=0.5)
    metrics.step_lost(n_prefill_tokens=0)
    values = read(metrics)
    assert values["tgi_batch_inference_count", "prefill"] == 1
    assert values["tgi_batch_inference_success", "prefill"] == 1
    assert values["tgi_batch_inference_duration_sum", "prefill"] == 0.5
    assert values["tgi_batch_forward_duration_sum", "prefill"] == 0.25
    assert values["tgi_batch_decode_duration_sum", "prefill"] == 0.125
    assert values["tgi_batch_filter_duration_sum", "prefill"] == 0.0625
    assert values["tgi_batch_concat_duration_sum", "decode"] == 0.75
    assert values["tgi_batch_inference_count", "decode"] == 1
    assert values["tgi_batch_inference_failure", "decode"] == 1
    assert values["tgi_batch_next_size_sum", ""] == 2


@pytest.mark.parametrize(("n_admitted", "n_decode", "joined"), [(1, 1, 1), (1, 0, 0), (0, 1, 0)])
def test_joining_needs_some_that_run_and_some_that_come(
    metrics: Metrics, n_admitted: int, n_decode: int, joined: int
) -> None:
    metrics.step_sent(
        n_prefill_tokens=1, n_admitted=n_admitted, n_decode=n_decode, plan_seconds=0.5
    )
    values = read(metrics)
    assert values["tgi_batch_concat", "chunking"] == joined
    assert values.get(("tgi_batch_concat_duration_count", "decode"), 0) == joined


def test_what_can_fail_has_failed_zero_times_at_the_start(metrics: Metrics) -> None:
    values = read(metrics)
    for err in ("validation", "overloaded", "template", "incomplete", "generation", "dropped"):
        assert values["tgi_request_failure", err] == 0
    for method in ("prefill", "decode"):
        assert values["tgi_batch_inference_failure", method] == 0


def test_a_load_balancer_reads_the_queue_and_the_share_of_the_cache() -> None:
    now = SimpleNamespace(**vars(IDLE) | {"n_running": 3, "n_waiting": 2, "used_blocks": 6})
    metrics = Metrics(max_input_tokens=1000, max_total_tokens=2000, max_batch_total_tokens=128)
    values = samples(metrics.expose(now).decode())
    assert values["tgi_async_requests_waiting", ""] == values["tgi_queue_size", ""] == 2
    assert values["tgi_async_requests_running", ""] == values["tgi_batch_current_size", ""] == 3
    assert values["tgi_async_kv_cache_usage", ""] == 0.75
    assert values["tgi_async_block_size", ""] == 16
    assert values["tgi_async_total_blocks", ""] == 8
    assert values["tgi_batch_max_total_tokens", ""] == 128


CONTRACT: dict[str, list[tuple[str, str | None]]] = {
    "counter": [
        ("tgi_request_count", None),
        ("tgi_request_success", None),
        ("tgi_request_failure", "err"),
        ("tgi_batch_inference_count", "method"),
        ("tgi_batch_inference_success", "method"),
        ("tgi_batch_inference_failure", "method"),
        ("tgi_batch_concat", "reason"),
    ],
    "gauge": [
        ("tgi_queue_size", None),
        ("tgi_batch_current_size", None),
        ("tgi_batch_current_max_tokens", None),
        ("tgi_batch_max_total_tokens", None),
    ],
    "histogram": [
        ("tgi_request_duration", None),
        ("tgi_request_validation_duration", None),
        ("tgi_request_queue_duration", None),
        ("tgi_request_inference_duration", None),
        ("tgi_request_mean_time_per_token_duration", None),
        ("tgi_batch_inference_duration", "method"),
        ("tgi_batch_forward_duration", "method"),
        ("tgi_batch_decode_duration", "method"),
        ("tgi_batch_filter_duration", "method"),
        ("tgi_batch_concat_duration", "method"),
        ("tgi_request_input_length", None),
        ("tgi_request_skipped_tokens", None),
        ("tgi_request_generated_tokens", None),
        ("tgi_request_max_new_tokens", None),
        ("tgi_batch_next_size", None),
    ],
}
"""Every metric of TGI, with its label; a summary there, `tgi_request_skipped_tokens` is of use as
a histogram only."""
N_BUCKETS = {"duration": 36, "length": 101, "tokens": 101, "size": 1025}
N_BUCKETS_OF_SKIPPED = 66
"""None skipped, up to the most drafts, and more."""


@pytest.fixture
def busy(metrics: Metrics) -> str:
    """What there is to read after a request, a failure and two steps."""
    metrics.request_received()
    metrics.request_validated(0.25, 30, 100)
    metrics.admitted(16)
    for n_prefill in (9, 0):
        metrics.step_sent(n_prefill_tokens=n_prefill, n_admitted=1, n_decode=1, plan_seconds=0.5)
        metrics.step(
            n_prefill_tokens=n_prefill,
            seconds=0.5,
            forward_seconds=0.25,
            sample_seconds=0.125,
            results_seconds=0.0625,
        )
    metrics.step_lost(n_prefill_tokens=9)
    metrics.request_generated(0.5, 2.0, 4)
    metrics.request_succeeded(3.0)
    metrics.request_failed("dropped")
    return metrics.expose(IDLE).decode()


@pytest.mark.parametrize(
    ("kind", "name", "label"),
    [(kind, name, label) for kind, found in CONTRACT.items() for name, label in found],
)
def test_every_metric_of_tgi_has_its_kind_label_and_buckets(
    busy: str, kind: str, name: str, label: str | None
) -> None:
    assert f"# TYPE {name} {kind}\n" in busy
    sample = name + "_bucket" if kind == "histogram" else name
    found = [line for line in busy.splitlines() if re.match(rf"{sample}[ {{]", line)]
    names = set(re.findall(r'(\w+)="', "".join(found)))
    assert names == {one for one in (label, "le" if kind == "histogram" else None) if one}
    if kind == "histogram":
        values = set(re.findall(rf'{label}="(\w+)"', "".join(found))) or {None}
        n_buckets = N_BUCKETS[name.rsplit("_", 1)[1]]
        if name == "tgi_request_skipped_tokens":
            n_buckets = N_BUCKETS_OF_SKIPPED
        assert len(found) == n_buckets * len(values)
