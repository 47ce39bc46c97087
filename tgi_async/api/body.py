"""Read and decode a request's body, within a limit.

On TGI's routes, what is wrong with a body is answered in plain text rather than in the JSON of
other errors: that is what TGI's HTTP framework does, and clients of TGI may look at it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Generic, Protocol, TypeVar

import msgspec
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from tgi_async.api.limits import Limits, set_by
from tgi_async.errors import ServerError

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_MISSING = "Object missing required field "
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
BODY_SECONDS = 60.0
"""Time limit for a body: a client that sends a byte now and then would keep memory in use for
ever."""


class BodyRefused(ServerError):
    """The body cannot be used."""

    failure = "validation"
    tgi_body = "text"

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.status = status
        if status == 408:
            # The rest of the body would arrive as the beginning of another request.
            self.headers = ((b"connection", b"close"),)

    @classmethod
    def of_wrong_type(cls, reason: str, place: str = "") -> BodyRefused:
        """Refuse JSON that is not what the route takes; `place` is the field's path."""
        param = place
        if reason.startswith(_MISSING):
            param += "." * bool(place) + reason.removeprefix(_MISSING).strip("`")
        return cls(
            422,
            "Failed to deserialize the JSON body into the target type: "
            f"{place}{': ' if place else ''}{reason}",
            param=param or None,
        )


async def read_json_body(scope: Scope, receive: Receive, limits: Limits) -> bytes:
    """Read the whole body, of at most `payload_limit` bytes; nothing beyond the limit is kept.

    A byte order mark, which some writers begin with, is left out (RFC 8259, 8.1).

    Raises:
        BodyRefused: 415 when it is not declared as JSON or is compressed, 413 when it is too long,
            408 when it does not arrive within BODY_SECONDS.
        ClientDisconnect: the client went away first.
    """
    headers = Headers(scope=scope)
    if not _is_json(headers.get("content-type", "")):
        raise BodyRefused(415, "Expected request with `Content-Type: application/json`")
    coding = headers.get("content-encoding", "identity").strip()
    if coding.lower() not in ("", "identity"):
        refused = BodyRefused(
            415, f"`Content-Encoding: {coding[:40]}` is not supported. Send the body as it is"
        )
        refused.headers = ((b"accept-encoding", b"identity"),)
        raise refused
    declared = headers.get("content-length", "")
    limit = limits.payload_limit
    message = "Failed to buffer the request body: length limit exceeded"
    if limits.dialect.explains_errors:
        message += f". Allowed: {limit} bytes{set_by(limits, '--payload-limit')}"
    too_long = BodyRefused(413, message)
    # More digits than this are no valid limit, and slow to parse.
    if declared.isdecimal() and (len(declared) > 20 or int(declared) > limit):
        raise too_long
    try:
        async with asyncio.timeout(BODY_SECONDS):
            body = await _read(receive, limit, too_long)
    except TimeoutError:
        reason = f"The request body did not arrive within {BODY_SECONDS:g} seconds"
        raise BodyRefused(408, reason) from None
    return body.removeprefix(_BYTE_ORDER_MARK)


async def _read(receive: Receive, limit: int, too_long: BodyRefused) -> bytes:
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


def decode_json(decoder: msgspec.json.Decoder[T], body: bytes | msgspec.Raw) -> T:
    """Decode `body`.

    Raises:
        BodyRefused: 400 when it is not JSON (this includes NaN, Infinity, invalid UTF-8 and lone
            surrogates), 422 when it is not of the decoder's type.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at ")
        raise BodyRefused.of_wrong_type(reason, path.strip("`").removeprefix("$.")) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BodyRefused(400, f"Failed to parse the request body as JSON: {error}") from None


class BodyType(Protocol[T_co]):
    """The types of a route's body."""

    @property
    def types(self) -> tuple[Any, ...]:
        """The alternative types."""

    def decode(self, body: bytes) -> T_co:
        """Decode `body`.

        Raises:
            BodyRefused: it is none of the types.
        """


class JsonBody(Generic[T]):
    """Decodes bodies of one type."""

    def __init__(self, body_type: type[T]) -> None:
        self.types: tuple[Any, ...] = (body_type,)
        self._decoder = msgspec.json.Decoder(body_type)

    def decode(self, body: bytes) -> T:
        """Decode `body`, as `decode_json` does."""
        return decode_json(self._decoder, body)


class JsonBodyVariants(Generic[T]):
    """Decodes bodies of several types, distinguished by a field that one of them requires.

    As in TGI, the first type that a body fits is taken, so a wrong field may be passed over where
    the body has the fields of another type too.
    """

    def __init__(self, types: Mapping[str, type[T]]) -> None:
        self.types: tuple[Any, ...] = tuple(types.values())
        self._decoders = {name: msgspec.json.Decoder(one) for name, one in types.items()}

    def decode(self, body: bytes) -> T:
        """Decode `body`.

        Raises:
            BodyRefused: it fits none; the text is about the type that it comes closest to.
        """
        refusals: dict[str, BodyRefused] = {}
        for name, decoder in self._decoders.items():
            try:
                return decode_json(decoder, body)
            except BodyRefused as refused:
                if refused.status == 400:
                    raise
                refusals[name] = refused
        given = decode_json(_FIELDS, body)
        for name in refusals:
            if name in given:
                raise refusals[name]
        names = ", ".join(f"`{name}`" for name in self._decoders)
        raise BodyRefused.of_wrong_type(f"Object has none of the fields {names}")


_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _is_json(content_type: str) -> bool:
    media = content_type.partition(";")[0].strip().lower()
    return media == "application/json" or (
        media.startswith("application/") and media.endswith("+json")
    )
