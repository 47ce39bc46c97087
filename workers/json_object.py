"""A file that holds a JSON object, as most files of a model folder do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_object(file: Path) -> dict[str, Any]:
    """Read a JSON object; an absent file is an empty one.

    Raises:
        ValueError: the file holds something else.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file.name} is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file.name} is not a JSON object")
    return found
