"""The names of fields in a route's messages."""

from __future__ import annotations

from typing import NamedTuple


class FieldNames(NamedTuple):
    """The names; TGI's by default."""

    prompt: str = "inputs"
    max_new_tokens: str = "max_new_tokens"
    top_n_tokens: str = "top_n_tokens"
    grammar: str = "grammar"


OF_TGI = FieldNames()
