"""Which keys of the past a layer's queries see."""

from __future__ import annotations

from typing import NamedTuple


class Reach(NamedTuple):
    """Of the keys that are not ahead of it, a query sees those that both of these leave."""

    window: int = 0
    """The last so many, its own included; 0: all."""
    chunk: int = 0
    """Those of its own chunk, the text being cut every so many positions; 0: all."""
