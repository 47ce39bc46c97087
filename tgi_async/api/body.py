"""Reading and decoding a request's body, within a limit.

What is wrong with a body is answered in plain text rather than in the JSON of other errors: that is
what TGI's HTTP framework does, and clients of TGI may look at it.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

T = TypeVar("T")


class BodyRefused(Exception):
    """The body cannot be used; answered as plain text."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text

    @classmethod
    def of_wrong_type(cls, reason: str) -> BodyRefused:
        """Well-formed JSON that is not what the route takes."""
        return cls(422, f"Failed to deserialize the JSON body into the target type: {reason}")


async def read_json_body(scope: Scope, receive: Receive, limit: int) -> bytes:
    """The whole body, of at most `limit` bytes; nothing beyond the limit is kept.

    Raises:
        BodyRefused: 415 when it is not declared as JSON, 413 when it is too long.
        ClientDisconnect: the client went away first.
    """
    headers = Headers(scope=scope)
    if not _is_json(headers.get("content-type", "")):
        raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
    declared = headers.get("content-length", "")
    too_long = BodyRefused(413, "Failed to buffer the request body: length limit exceeded")
    if declared.isdecimal() and int(declared) > limit:
        raise too_long
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise too_long
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def decode_json(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode `body`.

    Raises:
        BodyRefused: 400 when it is not JSON (this includes NaN, Infinity, invalid UTF-8 and lone
            surrogates), 422 when it is not of the decoder's type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        place = path.strip("`").removeprefix("$.")
        raise BodyRefused.of_wrong_type(f"{place}: {reason}" if place else reason) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyRefused(400, f"Failed to parse the request body as JSON: {error}") from None


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (
        media.startswith("application/") and media.endswith("+json")
    )
