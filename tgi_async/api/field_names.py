"""What the clients of a route call the fields that its messages are about."""

from __future__ import annotations

from typing import NamedTuple


class FieldNames(NamedTuple):
    """By default TGI's."""

    prompt: str = "inputs"
    max_new_tokens: str = "max_new_tokens"
    top_n_tokens: str = "top_n_tokens"
    grammar: str = "grammar"


OF_TGI = FieldNames()
