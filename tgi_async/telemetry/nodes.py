"""Metric of the nodes that have a part of one model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tgi_async.telemetry.instruments import head


class Nodes(Protocol):
    """The nodes, as their leader sees them."""

    n_nodes: int

    @property
    def missing(self) -> list[int]:
        """Those that are not there."""


class NodesUp:
    """Which nodes are there."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def lines(self) -> Iterator[str]:
        """Return the lines of the text format."""
        yield head("tgi_async_node_up", "Whether a node of the model is there", "gauge")
        missing = self._nodes.missing
        for rank in range(self._nodes.n_nodes):
            yield f'tgi_async_node_up{{node="{rank}"}} {int(rank not in missing)}\n'
