"""What an engine of grammars does. It runs in the workers, and in the processes that vet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tgi_async.grammar.grammar import Grammar


class GrammarError(Exception):
    """This grammar cannot be followed, or not within the engine's limits; the message says why."""


class Matcher(Protocol):
    """A text on its way through a grammar. No two threads use one at the same time."""

    def fill(self, mask: NDArray[np.int32]) -> None:
        """Write which tokens may come next, into int32 [words]: token i is bit i % 32 of word
        i // 32. The end of the text counts as the tokens that end a text. Raises GrammarError.
        """
        ...

    def advance(self, tokens: Sequence[int]) -> None:
        """Take tokens that were chosen. Raises GrammarError if they are not allowed."""
        ...

    def forced(self) -> list[int]:
        """The tokens of the text that must come next whatever is chosen, if the engine knows any.

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
        """Whether what may come next depends on more than what a text may go on with."""
        ...

    def copy(self) -> Matcher:
        """One that goes its own way from here."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes of memory that this one and its copies share, roughly: more, rather than fewer."""
        ...


class Engine(Protocol):
    """Compiles grammars for one tokenizer."""

    def matcher(self, grammar: Grammar) -> Matcher:
        """At the beginning of a text. Raises GrammarError."""
        ...

    @property
    def token_texts(self) -> list[bytes | None]:
        """What each token id adds to a text; None for special tokens."""
        ...
