"""A vocabulary as a trie of bytes, so that common prefixes are visited once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Level(NamedTuple):
    """The prefixes of one length, in bytes."""

    parents: NDArray[np.int32]
    """[prefixes]: the index of each prefix without its last byte, in the level before."""
    bytes: NDArray[np.uint8]
    """[prefixes]: the last byte of each."""


class Trie:
    """The prefixes of all tokens, by length. The empty one is not in `levels`."""

    def __init__(self, texts: Sequence[bytes | None]) -> None:
        """Make the trie. `texts`: what each token id adds to a text; None for special tokens."""
        self.ends = np.zeros(len(texts), np.int32)
        """[tokens]: the index of each token among all prefixes, the empty one being the first."""
        self.levels: list[Level] = []
        ids = np.array([i for i, text in enumerate(texts) if text], np.int32)
        flat = np.frombuffer(b"".join(texts[i] or b"" for i in ids.tolist()), np.uint8)
        lengths = np.array([len(texts[i] or b"") for i in ids.tolist()], np.int64)
        begins = np.cumsum(lengths) - lengths
        at = np.zeros(len(ids), np.int64)
        """The index of what has been read of each token, in its level."""
        first = 1
        while len(ids):
            depth = len(self.levels)
            pairs = at * 256 + flat[begins + depth]
            prefixes, at = np.unique(pairs, return_inverse=True)
            self.levels.append(
                Level((prefixes >> 8).astype(np.int32), (prefixes & 255).astype(np.uint8))
            )
            ended = lengths == depth + 1
            self.ends[ids[ended]] = first + at[ended]
            first += len(prefixes)
            ids, begins, lengths, at = (x[~ended] for x in (ids, begins, lengths, at))
        self.n_prefixes = first
