"""A text that is searched for its own end: where else did the tokens before a place occur?

Places are found as in a compressor of the LZ77 family. A place is the index of a token, and is
filed under a hash of the 4, the 2 and the 1 tokens before it: a table has the latest place of each
hash, and every place links to the one before it with the same hash. What is found so is compared
with the text itself: equal hashes of other tokens cost time and are never taken for a match. A
search visits a bounded number of places, whatever the text is.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

LONGEST = 16
"""Tokens that are compared at most. With 24 or 64 no more drafts are right: two places after the
same 16 tokens are rarely told apart by the 17th."""

_LENGTHS = (4, 2, 1)
_ENOUGH = (LONGEST, 3, 1)
"""Where nothing was found by 4 tokens, a match has 3 at most; where nothing by 2, only 1."""
_VISITS = (range(16), range(8), range(8))
"""Places that a search compares for each of these lengths."""
_WEIGHTS = (10007, 7919, 12289, 15013)
"""Of the tokens before a place, the nearest first, in its hash. Small, for Python's sums of small
integers are quick; with them, counting up and the like fill all slots evenly."""
_SHIFT = 8
"""Lowest bits of a hash that do not count: they hang on the lowest bits of the tokens alone."""

_SHORTEST = 4
"""Tokens that a text has at least when it is searched."""
_MANY = 96
"""Tokens from which numpy is quicker at filing than a loop."""
_LEAST_SLOTS = 64


class History:
    """Tokens, searched for the latest place that follows the same ones. Some 40 bytes a token.

    Tokens are filed when a search needs them, so a text that is never searched has 4 bytes a token.
    """

    __slots__ = ("_heads", "_links", "_mask", "_n_filed", "text")

    def __init__(self, tokens: Iterable[int] = ()) -> None:
        self.text = array("i", tokens)
        self._n_filed = 1
        """Places below it are filed, or, of place 0, never will be: nothing is before it."""
        self._mask = -1
        self._heads = [array("i") for _ in _LENGTHS]
        """For each length, the latest place by hash; 0 where there is none."""
        self._links = [array("i", [0]) for _ in _LENGTHS]
        """For each length, by place, the latest one before it with the same hash, or 0."""

    def find(self, tail: array[int], beyond: int = 0) -> tuple[int, int]:
        """Return the longest match of more than `beyond` tokens with the end of `tail`, and the
        latest place that follows it; (0, 0) if there is none.

        `tail` has at most `LONGEST` tokens, the end of this text or of another. The latest place of
        a text is its last token, so its own end is no match of itself.
        """
        text, n_tail = self.text, len(tail)
        if n_tail < _SHORTEST or beyond >= n_tail:
            return 0, 0
        if self._n_filed < len(text):
            self._file()
        if self._mask < 0:
            return 0, 0
        weight_1, weight_2, weight_3, weight_4 = _WEIGHTS
        by_one = tail[-1] * weight_1
        by_two = by_one + tail[-2] * weight_2
        by_four = by_two + tail[-3] * weight_3 + tail[-4] * weight_4
        mask, found = self._mask, 0
        for hashed, heads, links, length, enough, visits in zip(
            (by_four, by_two, by_one),
            self._heads,
            self._links,
            _LENGTHS,
            _ENOUGH,
            _VISITS,
            strict=True,
        ):
            if beyond >= enough:
                break
            place = heads[hashed >> _SHIFT & mask]
            if not place:
                continue
            needed = length if beyond < length else beyond + 1
            # A place must match more than the one found before it, so the farthest of these tokens
            # is looked at first.
            wanted, farthest = tail[-needed:], tail[-needed]
            for _ in visits:
                if (
                    place >= needed
                    and text[place - needed] == farthest
                    and text[place - needed : place] == wanted
                ):
                    if text[place - n_tail : place] == tail:
                        return n_tail, place
                    found = place
                    while place > needed and text[place - needed - 1] == tail[-needed - 1]:
                        needed += 1
                    if needed >= enough:
                        return needed, found
                    needed += 1
                    wanted, farthest = tail[-needed:], tail[-needed]
                place = links[place]
                if not place:
                    break
            if found:
                return needed - 1, found
        return 0, 0

    def after(self, place: int, n: int) -> list[int]:
        """Return the `n` tokens that follow from `place` on.

        Where the text ends before that, it is taken to repeat itself from `place` on.
        """
        tokens = self.text[place : place + n].tolist()
        if len(tokens) < n:
            tokens = (tokens * -(-n // len(tokens)))[:n]
        return tokens

    def _file(self) -> None:
        """File all places that have a token."""
        first, end = self._n_filed, len(self.text)
        if end > self._mask + 1:
            self._grow(end)
        if end - first >= _MANY or first < _SHORTEST:
            self._file_many(first, end)
        else:
            self._file_few(first, end)
        self._n_filed = end

    def _file_few(self, first: int, end: int) -> None:
        text, mask = self.text, self._mask
        heads_4, heads_2, heads_1 = self._heads
        links_4, links_2, links_1 = self._links
        weight_1, weight_2, weight_3, weight_4 = _WEIGHTS
        fourth, third, second, nearest = text[first - 4 : first]
        for place in range(first, end):
            hashed = nearest * weight_1
            slot = hashed >> _SHIFT & mask
            links_1.append(heads_1[slot])
            heads_1[slot] = place
            hashed += second * weight_2
            slot = hashed >> _SHIFT & mask
            links_2.append(heads_2[slot])
            heads_2[slot] = place
            hashed += third * weight_3 + fourth * weight_4
            slot = hashed >> _SHIFT & mask
            links_4.append(heads_4[slot])
            heads_4[slot] = place
            fourth, third, second, nearest = third, second, nearest, text[place]

    def _file_many(self, first: int, end: int) -> None:
        places = np.arange(first, end, dtype=np.int32)
        for heads, links, slots in zip(
            self._heads, self._links, self._slots(first, end), strict=True
        ):
            latest = np.frombuffer(heads, np.int32)
            # Sorted by slot, then place: what stands before a place in this order is its link.
            keys = slots << 32 | places
            keys.sort()
            order = (keys & 0xFFFFFFFF).astype(np.int32)
            slots_in_order = keys >> 32
            linked = latest[slots_in_order]
            same = slots_in_order[1:] == slots_in_order[:-1]
            linked[1:][same] = order[:-1][same]
            by_place = np.empty_like(linked)
            by_place[order - first] = linked
            links.frombytes(by_place.tobytes())
            latest[slots] = places  # of equal slots the last one counts: the latest place

    def _grow(self, n: int) -> None:
        """Make tables for `n` places. Links stay: a slot's places are all in the chain that its
        larger predecessor had, with others, which a search passes over."""
        self._mask = max(_LEAST_SLOTS, 1 << (n - 1).bit_length()) - 1
        places = np.arange(1, self._n_filed, dtype=np.int32)
        for level, slots in enumerate(self._slots(1, self._n_filed)):
            heads = np.zeros(self._mask + 1, np.int32)
            heads[slots] = places
            self._heads[level] = array("i", heads.tobytes())

    def _slots(self, first: int, end: int) -> list[npt.NDArray[np.int64]]:
        """The slots of places, for each length: as `_file_few` has them."""
        # Tokens from 4 before the first place to 1 before the last, and 0 before the text.
        before = np.zeros(end - first + _SHORTEST - 1, np.int64)
        known = np.frombuffer(self.text, np.int32)[max(0, first - _SHORTEST) : end - 1]
        before[len(before) - len(known) :] = known
        n = end - first
        hashes = np.zeros(n, np.int64)
        slots: list[npt.NDArray[np.int64]] = []
        for distance, weight in enumerate(_WEIGHTS, start=1):
            start = _SHORTEST - distance
            hashes += weight * before[start : start + n]
            if distance in _LENGTHS:
                slots.append(hashes >> _SHIFT & self._mask)
        return slots[::-1]
