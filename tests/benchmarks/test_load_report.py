"""Figures that `load.py` prints."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.load_client import UNFINISHED, Exchange, Server
from benchmarks.load_report import compare, percentile, summarize
from benchmarks.load_rounds import Round

OPENAI = Server("ours", "127.0.0.1", 80, "/v1/completions", None, None)
TGI = Server("tgi", "127.0.0.1", 80, "/generate_stream", None, None)


def answered(*events: dict[str, Any] | bytes, failure: str | None = None) -> Exchange:
    """An exchange whose events came a second apart."""
    exchange = Exchange(b"")
    exchange.failure = failure
    payloads = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in events]
    exchange.events = [(float(at + 1), payload) for at, payload in enumerate(payloads)]
    return exchange


def round_of(
    elapsed: float, *exchanges: Exchange, server: Server = OPENAI, asked: int = 2
) -> Round:
    made = Round(elapsed=elapsed, client_cpu=0.1, requests=len(exchanges))
    for exchange in exchanges:
        made.add(server, exchange, asked)
    return made


TOKEN: dict[str, Any] = {"choices": [{"text": "a"}]}
USAGE: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}


@pytest.mark.parametrize(("percent", "value"), [(50, 2.0), (99, 4.0), (1, 1.0)])
def test_percentiles_are_values_that_were_seen(percent: float, value: float) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], percent) == value


def test_there_is_no_percentile_of_nothing() -> None:
    assert percentile([], 50) is None


def test_tokens_are_those_of_the_usage_and_times_those_of_the_events() -> None:
    made = round_of(4.0, answered(TOKEN, TOKEN, USAGE, b"[DONE]"))
    assert (made.output_tokens, made.prompt_tokens, made.events) == (2, 5, 2)
    assert (made.ttft, made.gaps, made.per_token) == ([1.0], [1.0], [1.0])
    assert not made.failures


def test_the_route_of_tgi_counts_in_the_details_of_its_last_event() -> None:
    last = {"token": {"id": 1}, "details": {"generated_tokens": 2, "input_length": 5}}
    made = round_of(4.0, answered({"token": {"id": 1}}, last), server=TGI)
    assert (made.output_tokens, made.prompt_tokens, made.events) == (2, 5, 2)


@pytest.mark.parametrize(
    ("exchange", "reason"),
    [
        (answered(TOKEN, USAGE | {"usage": {"completion_tokens": 1}}), "1 tokens instead of 2"),
        (answered(TOKEN, {"error": "overloaded"}), "overloaded"),
        (answered(b"not JSON"), "not understood"),
        (answered(), "no token came"),
        (answered(TOKEN, failure="connection lost"), "connection lost"),
    ],
)
def test_what_was_not_answered_as_asked_has_failed(exchange: Exchange, reason: str) -> None:
    made = round_of(4.0, exchange)
    assert reason in made.failures[0]
    assert made.output_tokens == 0


def test_a_summary_has_the_median_rate_and_the_latencies_of_all_rounds() -> None:
    rounds = [round_of(elapsed, answered(TOKEN, TOKEN, USAGE)) for elapsed in (1.0, 2.0, 4.0)]
    summary = summarize(rounds)
    assert summary["output_tokens_per_s"] == 1.0
    assert (summary["output_tokens_per_s_min"], summary["output_tokens_per_s_max"]) == (0.5, 2.0)
    assert (summary["requests"], summary["failures"], summary["itl_p99_s"]) == (3, 0, 1.0)


def test_the_first_server_is_compared_with_each_other() -> None:
    ours = summarize([round_of(1.0, answered(TOKEN, TOKEN, USAGE))])
    theirs = summarize([round_of(2.0, answered(TOKEN, TOKEN, USAGE))])
    nothing = summarize([round_of(2.0, answered())])
    ratios = compare({"ours": ours, "theirs": theirs, "nothing": nothing})
    assert ratios["theirs"]["output_tokens_per_s"] == 2.0
    assert ratios["nothing"]["itl_p50_s"] is None
    assert "ours" not in ratios


def test_of_a_stream_beside_prompts_only_the_times_beside_them_count() -> None:
    made = round_of(4.0)
    stream = answered(*[TOKEN] * 6, failure=UNFINISHED)
    made.add_beside(OPENAI, stream, 1.5, 4.5)
    assert (made.gaps, made.failures, made.output_tokens) == ([1.0, 1.0], [], 0)


@pytest.mark.parametrize(("failure", "why"), [(None, "too short"), ("connection lost", "lost")])
def test_a_stream_beside_prompts_is_not_to_end(failure: str | None, why: str) -> None:
    made = round_of(4.0)
    made.add_beside(OPENAI, answered(TOKEN, USAGE, b"[DONE]", failure=failure), 0.0, 9.0)
    assert why in made.failures[0]
