"""Report fields of requests that have no effect: in a header, in the log, and by a count."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence

from tgi_async.telemetry.metrics import Metrics

log = logging.getLogger(__name__)

HEADER = b"x-tgi-ignored"
MOST_BYTES = 1024
"""Most bytes of the header."""
MOST_CHARACTERS = 64
"""Most characters of a name, as clients choose them."""
MOST_LOGGED = 100
"""Most names that are logged while this process lives."""
_STRANGE = re.compile(r"[^A-Za-z0-9_.:$@/\[\]{}-]")
_MORE = "..."


def header_value(names: Iterable[str]) -> bytes:
    """Join the names with commas; three dots stand for those that do not fit."""
    value = ""
    for name in dict.fromkeys(map(_shown, names)):
        added = f", {name}" if value else name
        if len(value) + len(added) + len(_MORE) + 2 > MOST_BYTES:
            return f"{value}, {_MORE}".encode()
        value += added
    return value.encode()


class IgnoredFields:
    """Counts ignored fields, and logs each name once."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._logged: set[str] = set()

    def note(self, names: Sequence[str]) -> None:
        """Record the ignored fields of a request."""
        if not names:
            return
        self._metrics.fields_ignored(len(names))
        for name in map(_shown, names):
            if name in self._logged or len(self._logged) == MOST_LOGGED:
                continue
            self._logged.add(name)
            log.warning(
                "The field %s of a request has no effect here. The reply to each such request "
                "names it in the header x-tgi-ignored; this is logged once",
                name,
            )


def _shown(name: str) -> str:
    """Return a name with only letters that are safe in a header and a log."""
    shown = _STRANGE.sub("?", name[: MOST_CHARACTERS + 1])
    if len(shown) <= MOST_CHARACTERS:
        return shown
    return shown[: MOST_CHARACTERS - len(_MORE)] + _MORE
