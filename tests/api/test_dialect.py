"""The two dialects."""

from __future__ import annotations

from dataclasses import fields

import pytest

from tgi_async.api.dialect import OURS, TGI, Dialect, dialect_of


def test_strict_tgi_chooses_tgis_way_of_everything() -> None:
    assert dialect_of(strict_tgi=False) is OURS
    assert dialect_of(strict_tgi=True) is TGI
    same = [
        one.name for one in fields(Dialect) if getattr(OURS, one.name) == getattr(TGI, one.name)
    ]
    assert same == []


@pytest.mark.parametrize("dialect", [OURS, TGI])
def test_a_text_that_is_cut_and_one_that_ends_by_itself_are_never_mixed_up(
    dialect: Dialect,
) -> None:
    assert dialect.finish_reason("length") == "length"
    assert dialect.finish_reason("eos_token") == "stop"


def test_only_tgi_has_a_word_for_a_stop_sequence() -> None:
    assert OURS.finish_reason("stop_sequence") == "stop"
    assert TGI.finish_reason("stop_sequence") == "stop_sequence"
