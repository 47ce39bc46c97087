"""Errors that several folders of the worker raise and catch."""

from __future__ import annotations


class UnsupportedModel(Exception):
    """This model cannot be served; the message says why and what would be nearest."""


class ModelUnavailable(Exception):
    """No model folder ready for serving can be made; the message is for the user.

    It says what was asked for, why it is not available, and what to do.
    """


class RowsLost(Exception):
    """What this worker knows of its rows is in doubt, or none of them can be computed. It must end;
    the router replays them on another one. No RuntimeError, so that no row is blamed for it."""


FAILURES = (RuntimeError, MemoryError)
"""What a step fails with that is not the worker's end: memory that is short is either of them."""
