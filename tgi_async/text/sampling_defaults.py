"""The sampling parameters that a model's `generation_config.json` recommends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple


class SamplingDefaults(NamedTuple):
    """Defaults for requests that leave these unset. None where the model recommends nothing usable.

    A temperature of 0 is greedy: `"do_sample": false`, said outright.
    """

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None

    @classmethod
    def from_folder(cls, folder: Path) -> SamplingDefaults:
        """Read `generation_config.json`; a file that is absent or broken recommends nothing."""
        try:
            found = json.loads((folder / "generation_config.json").read_bytes())
        except (OSError, ValueError):
            return cls()
        if not isinstance(found, dict):
            return cls()
        if found.get("do_sample") is False:
            return cls(temperature=0.0)
        top_k = found.get("top_k")
        return cls(
            temperature=_between(found.get("temperature"), 1e-6, 1000.0),
            top_p=_between(found.get("top_p"), 1e-6, 0.999999),
            top_k=top_k if type(top_k) is int and 0 < top_k < 2**31 else None,
        )


def _between(value: Any, least: float, most: float) -> float | None:
    usable = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if usable and least <= value <= most else None
