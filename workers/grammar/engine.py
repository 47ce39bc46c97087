"""The interface of a grammar engine, which runs in workers and in the grammar check processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tgi_async.grammar.grammar import Grammar


class GrammarError(Exception):
    """This grammar cannot be followed, or not within the engine's limits; the message says why."""


class Matcher(Protocol):
    """The state of one text in a grammar. Not thread-safe."""

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write the mask of allowed next tokens into int32 [words]: token i is bit i % 32 of word
        i // 32. Where the text may end, the end-of-text tokens are allowed. Raises GrammarError.
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """Accept sampled tokens. Raises GrammarError if they are not allowed."""
        ...

    def allows(self, tokens: Sequence[int]) -> int:
        """Return how many of these tokens may come, one after the other. May be more than those
        that `fill` would allow."""
        ...

    def jump_forward_tokens(self) -> list[int]:
        """Return the jump-forward tokens: the only possible continuation, as far as it is known.

        They are the tokenizer's own for that text, and never those that end a text.
        """
        ...

    @property
    def complete(self) -> bool:
        """Whether the text may end here."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the text must end here."""
        ...

    @property
    def remembers(self) -> bool:
        """Whether the mask depends on more than the set of possible continuations."""
        ...

    def copy(self) -> Matcher:
        """Return an independent copy of this state."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that this one and its copies share; an estimate from above."""
        ...


class GrammarEngine(Protocol):
    """Compiles grammars for one tokenizer."""

    def matcher(self, grammar: Grammar) -> Matcher:
        """Return a matcher at the beginning of a text. Raises GrammarError."""
        ...

    @property
    def token_texts(self) -> list[bytes | None]:
        """What each token id adds to a text; None for special tokens."""
        ...
