"""The messages between the server and the processes that check grammars, as lines of JSON."""

from __future__ import annotations

from msgspec import Struct

CHARACTERS = 25_000


class CheckerStart(Struct, frozen=True):
    """The first line: which model. Encoded grammars follow."""

    model_path: str
    vocab_size: int
    end_ids: list[int]
    seconds: float
    """Processor seconds for a grammar, and again for each `CHARACTERS` of its length."""


class GrammarCheck(Struct, frozen=True):
    """The result of a check."""

    grammar: str = ""
    """The grammar for the workers; empty if it is refused."""
    refusal: str = ""
    """The reason."""
    invalid: bool = False
    """Whether it is refused because a schema in it is invalid in its draft."""
    ignored: tuple[str, ...] = ()
    """Keywords and formats of schemas that were probably meant as constraints, and are ignored."""


def seconds_for(length: int, seconds: float) -> float:
    """Return the processor seconds for a grammar of so many characters: a short one is compiled
    soon."""
    return seconds * (1 + length / CHARACTERS)
