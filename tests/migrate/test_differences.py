from __future__ import annotations

import re
from pathlib import Path

import pytest

from tgi_async.migrate import differences as module
from tgi_async.migrate.differences import differences

PAGE = Path(__file__).parents[2] / "docs" / "differences.md"


def test_lines_of_the_page_are_found_by_flag_and_by_variable() -> None:
    found = {name: one for one in differences() for name in one.names}
    assert found["--kv-cache-dtype"].here.startswith("these and int8, on every device")
    assert "docs/quantization.md" in found["--kv-cache-dtype"].here
    assert found["HF_MODEL_ID"] is found["SM_NUM_GPUS"]
    assert found["--model-id"].is_default
    assert not found["--payload-limit"].is_default


def test_no_marks_of_markdown_are_left() -> None:
    for one in differences():
        assert not re.search(r"`|\]\(", " ".join(one[1:]))
        assert one.in_tgi
        assert one.here


def test_the_section_has_a_line_for_most_flags_of_the_page() -> None:
    """A new heading or another form of the table would lose them without a word."""
    section = PAGE.read_text().partition(module.SECTION)[2].split("\n## ")[0]
    rows = re.findall(r"^\| (`(?:--[a-z]|[A-Z_]+`)[^|]*)\|", section, re.MULTILINE)
    assert len(rows) > 15
    found = {name for one in differences() for name in one.names}
    for row in rows:
        first = re.findall(r"`(--[\w-]+|[A-Z_]+)", row)[0]
        assert first in found


def test_without_the_page_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "NAME", "no such page")
    assert differences() == []
