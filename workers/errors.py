"""Errors that several folders of the worker raise and catch."""

from __future__ import annotations


class Unsupported(Exception):
    """This model cannot be served; the message says why and what would be nearest."""
