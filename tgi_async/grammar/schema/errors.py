"""Errors of schemas."""

from __future__ import annotations


class SchemaError(Exception):
    """A schema that cannot constrain a text; the message names the place as a JSON pointer."""


class InvalidSchema(SchemaError):
    """It is not a schema of its draft."""


class UnsupportedSchema(SchemaError):
    """It is valid, but not supported, or too large."""


class Inexpressible(UnsupportedSchema):
    """An alternative of a schema that no engine can express; left out where there are others."""


def unsupported(keyword: str, pointer: str, why: str) -> UnsupportedSchema:
    """Return the error for an unsupported keyword."""
    return UnsupportedSchema(f"keyword `{keyword}` at {pointer} is not supported: {why}")
