"""What schemathesis is to know of this server's streams: `schema` is that of an event's data."""

from __future__ import annotations

import json
import re
from typing import Any

import schemathesis


@schemathesis.deserializer("text/event-stream")
def events(context: Any, response: Any) -> list[Any]:
    """The data of each event. Raises ValueError where a stream is not framed as TGI frames it."""
    *pieces, last = response.content.decode().split("\n\n")
    if last:
        raise ValueError(f"the stream does not end with an empty line: {last[-200:]!r}")
    found = []
    for piece in pieces:
        if piece == ":":
            continue
        if not piece.startswith("data: ") or "\n" in piece:
            raise ValueError(f"an event is not one line of data: {piece[:200]!r}")
        if piece != "data: [DONE]":
            found.append(json.loads(piece.removeprefix("data: ")))
    return found


@schemathesis.hook
def filter_body(context: Any, body: Any) -> bool:
    """Leave out bodies with a number as a text: OpenAI's routes take it, which no schema says."""
    values = body.values() if isinstance(body, dict) else ()
    return not any(
        isinstance(value, str) and re.fullmatch(r"-?\d+(\.\d+)?", value) for value in values
    )
