"""What can be wrong with a schema."""

from __future__ import annotations


class SchemaError(Exception):
    """A schema that no text can be held to; the message names the place as a JSON pointer."""


class InvalidSchema(SchemaError):
    """It is not a schema of its draft."""


class UnsupportedSchema(SchemaError):
    """It is one, but asks for what cannot be done, or for too much."""


class Inexpressible(UnsupportedSchema):
    """A way to satisfy a schema that no engine has words for; left out where there are others."""


def unsupported(keyword: str, pointer: str, why: str) -> UnsupportedSchema:
    """A refusal by name."""
    return UnsupportedSchema(f"keyword `{keyword}` at {pointer} is not supported: {why}")
