"""A picture for suites whose environment has no library of images."""

from __future__ import annotations

import base64
import struct
import zlib


def _chunk(name: bytes, data: bytes) -> bytes:
    checked = name + data
    return struct.pack(">I", len(data)) + checked + struct.pack(">I", zlib.crc32(checked))


def png(width: int = 48, height: int = 32, red: int = 0) -> bytes:
    """A PNG whose pixels have colours of their own."""
    rows = b"".join(
        b"\0" + b"".join(bytes((red, x * 5 % 256, y * 7 % 256)) for x in range(width))
        for y in range(height)
    )
    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        _chunk(*one) for one in ((b"IHDR", size), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def url(**changed: int) -> str:
    return f"data:image/png;base64,{base64.b64encode(png(**changed)).decode()}"
