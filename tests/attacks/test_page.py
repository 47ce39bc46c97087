"""The tests that docs/advisories.md names exist, and no advisory is there twice."""

from __future__ import annotations

import re

from tests.test_seams import ROOT

PAGE = (ROOT / "docs" / "advisories.md").read_text("utf-8")
NAMED = re.compile(r"`((?:tests|property_tests)/[\w/]+\.py)?(?:::(\w+))?`")
ID = re.compile(r"\b(?:CVE-\d{4}-\d+|GHSA(?:-\w{4}){3}|PYSEC-\d{4}-\d+)")


def test_each_test_that_is_named_exists() -> None:
    n_named = 0
    path = ""
    for found in NAMED.finditer(PAGE):
        path = found[1] or path
        if not found[1] and not found[2]:
            continue
        source = (ROOT / path).read_text("utf-8")
        assert not found[2] or f"def {found[2]}(" in source, found[0]
        n_named += 1
    assert n_named > 60


def test_each_advisory_has_one_line() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ")]
    ids = [one for row in rows for one in ID.findall(row.split("|")[1])]
    assert len(ids) > 60
    assert len(ids) == len(set(ids))
    lacking = [row for row in rows if ID.search(row) and len(row.split("|")[4].strip()) < 20]
    assert lacking == []
