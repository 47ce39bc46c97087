"""Tokenize long texts by segments, whose token ids are cached.

A conversation comes whole with every turn. Tokenizing 100,000 tokens takes a fifth of a second, and
nearly all of them are those of the turn before. But token ids of a text's beginning are in general
not the beginning of its token ids, so a text is cut only where both sides are tokenized apart
anyway: before special tokens. The `tokenizers` library looks for these first, in the text as it is,
and then normalizes, splits and tokenizes what lies between two of them without regard to the rest.
`cut_tokens` has the exceptions; a property test compares with the ids of the whole text.
"""

from __future__ import annotations

import os
import re
import string
import sys
import threading
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Iterator

import tokenizers

# One text uses one thread. The library would start as many threads as there are processors.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

LEAST_CHARACTERS = 1024
"""Least characters of a segment: shorter ones are joined, as a segment costs time and memory
too."""
MOST_BYTES = 32 << 20
"""Most bytes of cached texts and ids: some four million tokens."""
LONGEST_TOKEN = 128
"""Most characters of a special token that texts are cut before."""
FIRST_CHARACTERS = frozenset(string.punctuation) - {"_"}


class Segments:
    """Encodes texts without the special tokens that a tokenizer puts around them. Thread-safe."""

    def __init__(
        self,
        inner: tokenizers.Tokenizer,
        *,
        least_characters: int = LEAST_CHARACTERS,
        most_bytes: int = MOST_BYTES,
    ) -> None:
        self._inner = inner
        self._least = least_characters
        self._left = most_bytes
        self._ids: OrderedDict[str, array[int]] = OrderedDict()
        """Token ids by segment, the one used least recently first."""
        self._lock = threading.Lock()
        tokens = cut_tokens(inner.get_added_tokens_decoder().values())
        # With dropout, a segment has other ids each time.
        exact = tokens and not getattr(inner.model, "dropout", None)
        self._cut = re.compile(_any_of(tokens)) if exact else None

    def encode(self, text: str) -> list[int]:
        """Return the ids of the whole text. Raises what the library raises."""
        segments = list(self._segments(text))
        last = segments.pop()  # the next turn's text in its place is longer
        with self._lock:
            found = [self._find(segment) for segment in segments]
        missing = [segment for segment, ids in zip(segments, found, strict=True) if ids is None]
        encoded = self._inner.encode_batch_fast([*missing, last], add_special_tokens=False)
        *made, end = (array("I", encoding.ids) for encoding in encoded)
        with self._lock:
            for segment, ids in zip(missing, made, strict=True):
                self._keep(segment, ids)
        rest = iter(made)
        whole = array("I")
        for known in found:
            whole += next(rest) if known is None else known
        whole += end
        return whole.tolist()

    def _segments(self, text: str) -> Iterator[str]:
        """Split `text`. As segments are cut from the front, a longer text begins with the same
        ones."""
        start = 0
        if self._cut is not None and len(text) > self._least:
            for found in self._cut.finditer(text, self._least):
                if found.start() - start >= self._least:
                    yield text[start : found.start()]
                    start = found.start()
        yield text[start:]

    def _find(self, segment: str) -> array[int] | None:
        ids = self._ids.get(segment)
        if ids is not None:
            self._ids.move_to_end(segment)
        return ids

    def _keep(self, segment: str, ids: array[int]) -> None:
        if segment in self._ids:  # another thread was first
            return
        self._ids[segment] = ids
        self._left -= _size(segment, ids)
        while self._left < 0:
            self._left += _size(*self._ids.popitem(last=False))


def cut_tokens(added: Iterable[tokenizers.AddedToken]) -> list[str]:
    """Return special tokens before which any text can be cut without changing its tokens.

    Such a token is found in the text as it is, and wherever it stands: it takes no white space
    before it, does not depend on the character before it (nor, being punctuation, does a token
    that ends there depend on it), and no other token that is looked for at the same time can begin
    before it and end in it or behind.
    """
    raw = [token for token in added if token.content and not token.normalized]
    texts = [
        token.content
        for token in raw
        if token.special
        and token.content[0] in FIRST_CHARACTERS
        and len(token.content) <= LONGEST_TOKEN
    ]
    firsts = {text[0] for text in texts}
    within = {
        token.content[start:]
        for token in raw
        for start in range(1, len(token.content))
        if token.content[start] in firsts
    }
    # Where one of these occurs, it is tried before a shorter one, and may then be skipped.
    dependent = [token.content for token in raw if token.lstrip or token.single_word]
    return [
        text
        for text in texts
        if not any(end.startswith(text) or text.startswith(end) for end in within)
        and not any(other.startswith(text) for other in dependent)
    ]


def _any_of(texts: Iterable[str]) -> str:
    """Return a regular expression for any of these, fast however many there are."""
    branches: dict[str, list[str]] = {}
    for text in texts:
        if not text:
            return ""  # the shortest is enough
        branches.setdefault(text[0], []).append(text[1:])
    made = [re.escape(first) + _any_of(rest) for first, rest in branches.items()]
    return made[0] if len(made) == 1 else f"(?:{'|'.join(made)})"


def _size(segment: str, ids: array[int]) -> int:
    return sys.getsizeof(segment) + sys.getsizeof(ids)
