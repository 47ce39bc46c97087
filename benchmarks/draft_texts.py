"""Prompts and answers for which drafts are made, out of this repository's own files."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterable
from pathlib import Path

REPOSITORY = Path(__file__).parent.parent
CHARACTERS = 7000
"""Of each text at most."""

Exchange = tuple[str, str]
"""A prompt, and the answer to it."""


def works() -> dict[str, list[Exchange]]:
    """Return exchanges by the kind of their work. The same files give the same texts."""
    documents = _read(sorted((REPOSITORY / "docs").glob("*.md"))[:12])
    programs = _read(sorted((REPOSITORY / "workers").glob("*/[a-m]*.py"))[::4][:12])
    tests = _read(sorted((REPOSITORY / "tests/workers/models").glob("test_*.py"))[:20])
    draw = random.Random(1)
    return {
        "edit": [(f"Correct this text.\n\n{text}\n\n", _edited(text, draw)) for text in documents],
        "extract": [(f"{text}\n\nWhat matters, as JSON:\n", _quoted(text)) for text in documents],
        "json": [continued(_records(draw)) for _ in range(12)],
        "code": [continued(text) for text in programs],
        "prose": [continued(text) for text in documents],
        "like answers": [("Write a test.\n", text) for text in tests],
    }


def continued(text: str) -> Exchange:
    """Return a text's first third and the rest."""
    cut = len(text) // 3
    return text[:cut], text[cut:]


def _read(paths: Iterable[Path]) -> list[str]:
    return [path.read_text()[:CHARACTERS] for path in paths]


def _edited(text: str, draw: random.Random) -> str:
    """Leave out one word in 60, and put another one in the place of one in 30."""
    words = re.split(r"(\s+)", text)
    others = [word for word in words if word.isalpha()]
    edited: list[str] = []
    for word in words:
        chance = draw.random()
        if word.isspace() or chance > 0.05:
            edited.append(word)
        elif chance > 1 / 60:
            edited.append(draw.choice(others))
    return "".join(edited)


def _quoted(text: str) -> str:
    """Return every fourth sentence as JSON."""
    sentences = [one.replace("\n", " ") for one in re.split(r"(?<=[.:])\s+", text) if len(one) > 20]
    quotes = [{"quote": one, "length": len(one)} for one in sentences[::4]]
    return json.dumps(quotes, indent=1, ensure_ascii=False)


def _records(draw: random.Random) -> str:
    names = ["Anna", "Bernd", "Clara", "Dirk", "Emil", "Frida", "Georg", "Hanna", "Ida", "Jonas"]
    cities = ["Berlin", "Hamburg", "Bonn", "Essen", "Kiel", "Ulm", "Dresden", "Leipzig"]
    records = [
        {
            "id": number,
            "name": draw.choice(names),
            "address": {"city": draw.choice(cities), "code": draw.randrange(10_000, 99_999)},
            "tags": draw.sample(["new", "paid", "sent", "returned"], draw.randrange(3)),
            "active": draw.random() < 0.7,
        }
        for number in range(30)
    ]
    return json.dumps(records, indent=2)
