"""Merge definitions that mean the same."""

from __future__ import annotations

import json
import re
from typing import Any

_REFERENCE = re.compile(r'"\$ref": "#/\$defs/([^"]+)"')
MOST_ROUNDS = 16


def merged(definitions: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Return the root with only the definitions that differ, however they refer to each other.

    They begin as one group, and are split by their text and by the groups that they lead to,
    until that tells nothing new; where it takes too long, they stay as they are.
    """
    texts = {name: json.dumps(one) for name, one in definitions.items()}
    groups = dict.fromkeys(texts, "")
    for _ in range(MOST_ROUNDS):
        firsts: dict[str, str] = {}
        refined = {
            name: firsts.setdefault(_renamed(text, groups), name) for name, text in texts.items()
        }
        if refined == groups:
            kept = {name: json.loads(_renamed(texts[name], groups)) for name in firsts.values()}
            found: dict[str, Any] = json.loads(_renamed(json.dumps(root), groups))
            return {**found, "$defs": kept}
        groups = refined
    return {**root, "$defs": definitions}


def _renamed(text: str, names: dict[str, str]) -> str:
    return _REFERENCE.sub(lambda found: f'"$ref": "#/$defs/{names[found[1]]}"', text)
