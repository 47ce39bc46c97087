"""Counts of drafts, by the method they come from and their place behind a row's token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from tgi_async.telemetry.instruments import head
from tgi_async.wire.messages import Sampled

VERIFIED = "tgi_async_drafts"
ACCEPTED = "tgi_async_accepted_drafts"


class DraftCounter:
    """Counts how many drafts of each place were verified and accepted.

    A row's first draft has position 1. A draft is accepted only if those before it were.
    """

    def __init__(self, method: str, most: int) -> None:
        """`most` drafts a row has in a step."""
        self._method = method
        self._verified = [0] * (most + 1)
        """By their number, how many rows of steps had so many."""
        self._accepted = [0] * (most + 1)

    def add(self, sampled: Sequence[Sampled]) -> None:
        """Count the drafts of a step."""
        verified, accepted = self._verified, self._accepted
        for one in sampled:
            if one.n_drafts:
                verified[one.n_drafts] += 1
                accepted[one.n_computed] += 1

    def lines(self) -> Iterator[str]:
        """Return the lines of the text format."""
        yield from self._lines(VERIFIED, "Drafts that were verified", self._verified)
        yield from self._lines(ACCEPTED, "Drafts that were accepted", self._accepted)

    def _lines(self, name: str, documentation: str, rows: list[int]) -> Iterator[str]:
        yield head(name, documentation, "counter")
        # Whoever had a second draft had a first one.
        at_least = list(accumulate(reversed(rows)))
        at_least.reverse()
        for position, count in enumerate(at_least[1:], 1):
            yield f'{name}{{method="{self._method}",position="{position}"}} {count}\n'
