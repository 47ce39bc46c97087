"""Logs: one line for each event, as text or as JSON.

The line of a request carries its `RequestRecord` as `request`; other lines may carry `fields`,
which are JSON values, for the JSON form. A warning or an error that is logged while a task works
for a request has the id of that.
"""

from __future__ import annotations

import json
import logging
import sys
import time

from tgi_async.telemetry.log_lines import LogLines
from tgi_async.telemetry.record import RequestRecord, current, duration

LEVELS = {
    "trace": logging.DEBUG,
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "off": logging.CRITICAL + 1,
}
COLORS = {"DEBUG": 34, "INFO": 32, "WARNING": 33, "ERROR": 31, "CRITICAL": 31}
"""Colors of the level names, as ANSI numbers."""


def level_of(text: str) -> int | None:
    """Return the level of this name, or None if there is none.

    TGI's filters are lists such as `info,text_generation_router=debug`. What they say of single
    parts of TGI has no meaning here; the level for all is what counts.
    """
    parts = [part.strip().lower() for part in text.split(",")]
    plain = [part for part in parts if "=" not in part]
    if any(part not in LEVELS for part in plain):
        return None
    return LEVELS[plain[-1]] if plain else logging.INFO


class TextFormatter(logging.Formatter):
    """Formats a line as text: time, level, message, and the figures of a request."""

    def __init__(self, *, colorize: bool) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S")
        self._colorize = colorize

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        seen = _request_of(record)
        if seen is not None:
            line += f" {_shown(seen)}"
        elif id := _whose(record):
            line += f" request_id={id}"
        if self._colorize:
            color = COLORS.get(record.levelname, 0)
            painted = f"\x1b[{color}m{record.levelname}\x1b[0m"
            line = line.replace(record.levelname, painted, 1)
        return line


class JsonFormatter(logging.Formatter):
    """Formats a line as a JSON object, with TGI's field names; a request's fields are in `span`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.gmtime(record.created)
        line: dict[str, object] = {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%S", moment) + f".{int(record.msecs):03d}Z",
            "level": record.levelname,
            "message": record.getMessage(),
            "target": record.name,
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        seen = _request_of(record)
        if seen is not None:
            span = {"name": seen.name, **seen.tgi_fields()}
            line |= {
                "status": seen.status,
                "request_id": seen.request_id,
                "input_tokens": seen.n_prompt,
                "generated_tokens": seen.n_generated,
                "span": span,
                "spans": [span],
            }
        elif id := _whose(record):
            line["request_id"] = id
        return json.dumps(line)


def configure(json_output: bool, level: str = "info", colorize: bool | None = None) -> None:
    """Log everything from `level` on to stderr. `colorize` None: where that is a terminal."""
    handler = _handler()
    if colorize is None:
        colorize = sys.stderr.isatty()
    handler.setFormatter(JsonFormatter() if json_output else TextFormatter(colorize=colorize))
    logging.basicConfig(level=level_of(level), handlers=[handler], force=True)
    # The launcher itself logs the start and the stop.
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _handler() -> logging.Handler:
    try:
        return LogLines(sys.stderr.fileno())
    except (AttributeError, OSError, ValueError):  # it is no file, but a host's own
        return logging.StreamHandler(sys.stderr)


def _request_of(record: logging.LogRecord) -> RequestRecord | None:
    return getattr(record, "request", None)


def _whose(record: logging.LogRecord) -> str:
    """Return the id of the request that a line which should not be there is about, if any."""
    if record.levelno < logging.WARNING or (seen := current()) is None:
        return ""
    return seen.request_id


def _shown(seen: RequestRecord) -> str:
    parts = [seen.name, f"tokens={seen.n_prompt}+{seen.n_generated}"]
    if seen.status is not None:
        parts.insert(1, str(seen.status))
    times = {"total_time": seen.total}
    if seen.succeeded:
        times |= {
            "validation_time": seen.validation,
            "queue_time": seen.queued,
            "inference_time": seen.inference,
            "time_per_token": seen.time_per_token,
        }
    parts += [f"{name}={duration(value)}" for name, value in times.items()]
    if seen.request_id:
        parts.append(f"request_id={seen.request_id}")
    return " ".join(parts)
