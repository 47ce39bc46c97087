"""Normalize a schema to one that engines follow exactly, or refuse it with the reason."""

from __future__ import annotations

from typing import Any

import msgspec

from tgi_async.grammar.schema.document import Document
from tgi_async.grammar.schema.emit import Emitter
from tgi_async.grammar.schema.errors import InvalidSchema, UnsupportedSchema
from tgi_async.grammar.schema.expand import Expander

MAX_CHARACTERS = 500_000
"""Most characters of a schema, as JSON."""


def parse(text: str) -> Any:
    """Parse a schema. Raises InvalidSchema or UnsupportedSchema."""
    check_size(len(text))
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise InvalidSchema(f"it is not JSON: {error}") from error
    except RecursionError as error:
        raise UnsupportedSchema("it is nested too deep") from error


def check_size(characters: int) -> None:
    """Check the size of a schema. Raises UnsupportedSchema."""
    if characters > MAX_CHARACTERS:
        raise UnsupportedSchema(
            f"it must have at most {MAX_CHARACTERS} characters. Given: {characters}"
        )


def normalize(schema: Any, ignored: dict[str, None] | None = None) -> dict[str, Any] | bool:
    """Normalize a schema: the same values satisfy the result, or fewer, and it has only keywords
    that `emit` names.

    `ignored` gets the keywords and formats that may have been meant to say something, and do not.
    Raises InvalidSchema or UnsupportedSchema.
    """
    try:
        document = Document(schema)
        if ignored is not None:
            ignored |= document.ignored
        root = document.root
        return Emitter(Expander(document), ((root, True),)).schema()
    except RecursionError as error:
        raise UnsupportedSchema("its parts lead too deep into each other") from error
