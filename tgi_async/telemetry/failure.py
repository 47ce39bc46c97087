"""Describe errors for logs and traces.

A client's error message may quote what it sent. A log line does not: no part of a prompt is
written down.
"""

from __future__ import annotations

import re

from tgi_async.errors import TemplateError

MOST_CHARACTERS = 300
_PLACE = re.compile(r"\(in <string>:\d+\)$")


def reason_of(error: Exception) -> str:
    """Return one line about an error, without any part of a prompt.

    A chat template, or a library that an error was raised from, may quote what it was given: of
    these there are only the place and the kind.
    """
    said = str(error)
    if isinstance(error, TemplateError):
        place = _PLACE.search(said)
        where = f" {place[0]}" if place else ""
        return f"Template error{where}; only the client gets the full message"
    foreign = error.__cause__
    if foreign is not None:
        return f"{type(error).__name__} from {type(foreign).__name__}"
    lines = said.splitlines() or [type(error).__name__]
    return _shown(lines[0][:MOST_CHARACTERS])


def _shown(text: str) -> str:
    """Return the text with escapes for what a terminal would obey: clients choose names."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )
