"""The weights of clients, as whole numbers."""

from __future__ import annotations

MOST_WEIGHT = 16
UNIT = 720_720
"""The least common multiple of all weights: what a client of weight 1 is charged for one unit of
service."""
