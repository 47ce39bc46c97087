"""Errors that several folders of the worker raise and catch."""

from __future__ import annotations


class UnsupportedModel(Exception):
    """This model cannot be served; the message says why and what would be nearest."""


class ModelUnavailable(Exception):
    """No model folder ready for serving can be made; the message is for the user.

    It says what was asked for, why it is not available, and what to do.
    """
