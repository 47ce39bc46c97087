"""JSON and server-sent events, as bytes."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

HeaderList = list[tuple[bytes, bytes]]

Events = Sequence[object]
"""The payloads of server-sent events."""

DONE = msgspec.Raw(b"[DONE]")
"""Payload of the last event of the OpenAI routes' streams, also after an error."""

encode = msgspec.json.Encoder().encode


def encode_events(events: Events) -> bytes:
    """Return these events as one piece, each with its payload as JSON."""
    match events:
        case [payload]:  # most pieces are one event, and a piece is made for each token
            return b"data: %b\n\n" % encode(payload)
    return b"".join([b"data: %b\n\n" % encode(payload) for payload in events])
