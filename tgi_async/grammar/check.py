"""What the server and the processes that check grammars say to each other, as lines of JSON."""

from __future__ import annotations

from msgspec import Struct

CHARACTERS = 25_000


class CheckerStart(Struct, frozen=True):
    """The first line: for which model. Then come encoded grammars."""

    model_path: str
    vocab_size: int
    end_ids: list[int]
    seconds: float
    """Of processor time for a grammar, and with it for each `CHARACTERS` of its length."""


class GrammarCheck(Struct, frozen=True):
    """The answer to a grammar."""

    grammar: str = ""
    """As workers get it; empty if it is refused."""
    refusal: str = ""
    """Why."""
    invalid: bool = False
    """Refused because a schema in it is none of its draft."""
    ignored: tuple[str, ...] = ()
    """Keywords and formats of schemas that may have been meant to say something, and do not."""


def seconds_for(length: int, seconds: float) -> float:
    """Of processor time for a grammar of so many characters: a short one is compiled soon."""
    return seconds * (1 + length / CHARACTERS)
