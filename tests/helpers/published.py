"""Files of packages of the index that tests read; see published.txt."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / ".cache" / "published"
SCHEMA_SUITE = FOLDER / "jsonschema-4.26.0" / "json" / "tests"
CHAT_TEMPLATES = FOLDER / "trl" / "chat_templates"

needs_published = pytest.mark.skipif(
    not (SCHEMA_SUITE.is_dir() and CHAT_TEMPLATES.is_dir()),
    reason=f"the packages of published.txt are not in {FOLDER}; `make test` puts them there",
)
