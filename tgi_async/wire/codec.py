"""Encode and decode frames: a version byte, then one MessagePack value of the closed schema.

msgspec's typed decoder is the schema: it checks every type and bound while it parses, so a frame
that is not exactly one of `messages` never becomes an object. It knows no extension types.
"""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

from tgi_async.wire.messages import ToRouter, ToWorker

VERSION = 3
MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A step admits at most a batch of prompts; 64 MiB is 13 million token ids."""

T = TypeVar("T")


class WireError(Exception):
    """A frame that is not of this wire: wrong version, too large, or outside the schema."""


class Codec(Generic[T]):
    """Encodes and decodes the frames of one direction."""

    def __init__(self, messages: type[T], max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._max_bytes = max_bytes
        self._decoder = msgspec.msgpack.Decoder(messages)
        self._encoder = msgspec.msgpack.Encoder()

    def encode(self, message: T) -> bytes:
        """Encode a frame. Raises WireError if it is larger than `max_bytes`."""
        buffer = bytearray((VERSION,))
        self._encoder.encode_into(message, buffer, 1)
        if len(buffer) > self._max_bytes:
            raise WireError(f"a frame of {len(buffer)} bytes exceeds {self._max_bytes}")
        return bytes(buffer)

    def decode(self, frame: bytes | memoryview) -> T:
        """Decode a frame. Raises WireError for anything but one frame of this version and
        schema."""
        if len(frame) > self._max_bytes:
            raise WireError(f"a frame of {len(frame)} bytes exceeds {self._max_bytes}")
        if not frame or frame[0] != VERSION:
            raise WireError(f"expected wire version {VERSION}, got {bytes(frame[:1])!r}")
        try:
            return self._decoder.decode(memoryview(frame)[1:])
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise WireError(str(error)) from None


def to_worker_codec() -> Codec[ToWorker]:
    return Codec(ToWorker)  # type: ignore[arg-type]


def to_router_codec() -> Codec[ToRouter]:
    return Codec(ToRouter)  # type: ignore[arg-type]
