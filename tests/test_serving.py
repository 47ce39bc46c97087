"""What a server is made of, by its settings and its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tgi_async.api.dialect import OURS, TGI
from tgi_async.errors import StartError
from tgi_async.preparation import Prepared
from tgi_async.serving import _limits, _speculation
from tgi_async.settings import DEFAULT_DRAFTS, Settings
from tgi_async.wire.messages import CachePool, Ready, SpeculationConfig

PLAIN, HEADS = Prepared(Path(), "a/b", None), Prepared(Path(), "a/b", None, "/heads")


@pytest.mark.parametrize(
    ("given", "prepared", "expected"),
    [
        ({}, PLAIN, SpeculationConfig()),
        ({"speculate": 0}, HEADS, SpeculationConfig()),
        ({"speculate": 0, "speculation": "ngram"}, PLAIN, SpeculationConfig()),
        ({"speculate": 4}, PLAIN, SpeculationConfig(4)),
        ({"speculation": "ngram"}, PLAIN, SpeculationConfig(DEFAULT_DRAFTS, "ngram")),
        ({"speculate": 9, "speculation": "suffix"}, PLAIN, SpeculationConfig(9, "suffix")),
        ({}, HEADS, SpeculationConfig(0, "", "/heads")),
        ({"speculate": 2}, HEADS, SpeculationConfig(2, "", "/heads")),
        ({"speculation": "medusa"}, HEADS, SpeculationConfig(0, "medusa", "/heads")),
        ({"speculation": "ngram"}, HEADS, SpeculationConfig(DEFAULT_DRAFTS, "ngram")),
    ],
)
def test_drafts_are_what_is_asked_for_or_what_the_model_has(
    given: dict[str, Any], prepared: Prepared, expected: SpeculationConfig
) -> None:
    assert _speculation(Settings(**given), prepared) == expected


@pytest.mark.parametrize("method", ["medusa", "mlp_speculator"])
def test_a_model_without_heads_cannot_draft_by_them(method: str) -> None:
    with pytest.raises(StartError, match=rf"--speculation {method} needs .* Given: a/b\."):
        _speculation(Settings(speculate=3, speculation=method), PLAIN)


def test_limits_are_completed_by_what_there_is() -> None:
    prepared = Prepared(Path(), "a/b", "main")
    ready = Ready(
        [CachePool(4)], 16, 100, 512, "cpu", [], 32, 0, 7, [], "awq (gemm), 4 bits", "int8", 3
    )
    found = _limits(Settings(max_best_of=7), prepared, ready, 100, 2_000_000)
    assert (found.max_total_tokens, found.max_input_tokens) == (100, 99)
    assert (found.model_id, found.revision, found.max_best_of) == ("a/b", "main", 7)
    assert (found.dialect, found.kserve) == (OURS, False)
    assert (found.quantization, found.weight_bytes) == ("awq (gemm), 4 bits", 7)
    assert found.kv_cache_dtype == "int8"
    assert found.max_drafts == 3
    found = _limits(Settings(strict_tgi=True, kserve=True), prepared, ready, 100, 2_000_000)
    assert (found.dialect, found.kserve) == (TGI, True)
    found = _limits(
        Settings(max_total_tokens=50, max_input_length=10), prepared, ready, 100, 2_000_000
    )
    assert (found.max_total_tokens, found.max_input_tokens) == (50, 10)
    with pytest.raises(StartError, match=r"less than max-total-tokens, here 100\. Given: 100"):
        _limits(Settings(max_input_tokens=100), prepared, ready, 100, 2_000_000)
