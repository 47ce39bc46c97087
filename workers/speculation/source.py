"""What a source of drafts is: one class that guesses which tokens come next.

A draft never changes a text: it stands only where it is the token that the row samples at its
place. So a source needs to be quick, and right often.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple, Protocol

import torch


class Proposal(NamedTuple):
    """Drafts for one row."""

    tokens: list[int]
    match: int = 0
    """How many tokens at the end of the text led to them; 0 for a source that is a model.
    Acceptance is learnt by this number."""


NOTHING = Proposal([])


class DraftRows(NamedTuple):
    """Rows that are to be drafted for."""

    rows: Sequence[int]
    limits: Sequence[int]
    """Most drafts of each, at least one."""
    hidden: torch.Tensor | None = None
    """[n, hidden]: of each row, the model's last hidden state at the place where its last token was
    sampled, as the language-model head took it; None for a source that does not ask for it."""
    least_match: int = 0
    """Drafts that a shorter match leads to would not be verified."""


class DraftSource(Protocol):
    """Guesses the next tokens of rows. All is called on the worker's loop, between steps."""

    method: ClassVar[str]
    """Its name for `--speculation`."""
    wants_hidden: ClassVar[bool]

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        """Add a row with `tokens`, of which the first `n_prompt` are its prompt."""
        ...

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        """Append the tokens that a row was given."""
        ...

    def release(self, row: int) -> None:
        """Remove a row, which may not be there."""
        ...

    def propose(self, wanted: DraftRows) -> list[Proposal]:
        """Return drafts for each of these rows, `NOTHING` where it has no guess."""
        ...
