"""Which replica a prompt goes to."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tgi_async.ray_serve.prefixes import CHUNK, MOST_CHUNKS, SLACK, PrefixTable, keys_of

LONG = "x" * (3 * CHUNK)


@pytest.mark.parametrize(
    "body",
    [
        {"inputs": LONG, "parameters": {"seed": 1}},
        {"stream": True, "prompt": LONG},
        {"model": "m", "messages": [{"role": "system", "content": LONG}]},
    ],
)
def test_what_a_prompt_begins_with_is_what_counts(body: dict[str, Any]) -> None:
    first = keys_of(json.dumps(body).encode())
    assert len(first) == 3
    again = keys_of(json.dumps({"temperature": 0.5, "seed": 7, **body}).encode())
    assert again == first
    text = json.dumps(body).replace('xxx"', "xxx and more" + "y" * CHUNK + '"')
    later = keys_of(text.encode())
    assert later[:3] == first
    assert len(later) == 4
    other = keys_of(text.replace("xxx", "yxx", 1).encode())
    assert not set(other) & set(first)


def test_a_body_that_is_cut_short_or_no_json_counts_as_it_is() -> None:
    whole = json.dumps({"inputs": LONG}).encode()
    assert keys_of(whole[:-5])[:2] == keys_of(whole[:-9])[:2] != []
    assert keys_of(b"\xff" * CHUNK) != []
    assert keys_of(b"") == keys_of(b"[1, 2]") == keys_of(b'{"inputs": "Hi"}') == []
    assert len(keys_of(b"z" * CHUNK * 1000)) == MOST_CHUNKS


def test_a_tenant_is_a_prefix_of_its_own() -> None:
    body = json.dumps({"inputs": LONG}).encode()
    assert not set(keys_of(body, "a")) & set(keys_of(body, "b"))
    assert keys_of(b"{}", "a") == keys_of(body, "a")[:1]


def test_the_longest_prefix_wins_unless_its_replica_is_much_busier() -> None:
    table = PrefixTable()
    table.choose([1, 2], {"a": 0, "b": 9})
    table.choose([1, 5], {"a": 9, "b": 0})  # not much busier
    assert table.choose([1, 2, 3], {"a": SLACK, "b": 0}) == ("a", 2)
    assert table.choose([1, 2, 3], {"a": SLACK + 1, "b": 0}) == ("b", 0)
    # From then on it is where it went last.
    assert table.choose([1, 2, 3], {"a": 0, "b": 0}) == ("b", 3)


def test_a_replica_that_is_gone_is_not_chosen() -> None:
    table = PrefixTable()
    table.choose([1], {"a": 0})
    assert table.choose([1], {"b": 5, "c": 4}) == ("c", 0)


def test_new_prefixes_are_spread_over_idle_replicas() -> None:
    table = PrefixTable()
    chosen = [table.choose([key], {"a": 0, "b": 0}).replica for key in range(10)]
    assert chosen.count("a") == chosen.count("b") == 5


def test_it_forgets_what_was_not_seen_for_longest() -> None:
    table = PrefixTable(most=10)
    for key in range(20):
        table.choose([key], {"a": 0})
        table.choose([0], {"a": 0})
    assert len(table) == 10
    assert table.choose([19], {"a": 0}).n_keys == 1
    assert table.choose([5], {"a": 0}).n_keys == 0
    assert table.choose([0], {"a": 0}).n_keys == 1
