"""Encoded images, whole and bad ones."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image


def encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 12, height: int = 8) -> Image.Image:
    """Return an image whose pixels are all different, and whose sides are too."""
    image = Image.new("RGB", (width, height))
    image.putdata(
        [(20 * x, 30 * y, 255 - 10 * (x + y)) for y in range(height) for x in range(width)]
    )
    return image


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_of(width: int, height: int, data: bytes, *chunks: bytes) -> bytes:
    """Return a grey PNG whose header has this width and height; `data` is that of its pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [png_chunk(b"IHDR", header), *chunks, png_chunk(b"IDAT", data), png_chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def large_png(width: int, height: int) -> bytes:
    """Return a whole black PNG, which is small."""
    packed = zlib.compressobj(1)
    row = bytes(1 + width)
    data = b"".join(packed.compress(row) for _ in range(height)) + packed.flush()
    return png_of(width, height, data)


def text_bomb() -> bytes:
    """Return a small PNG with a text of 256 MiB."""
    packed = zlib.compressobj(1)
    data = b"".join(packed.compress(bytes(1 << 20)) for _ in range(256)) + packed.flush()
    return png_of(4, 4, zlib.compress(bytes(20)), png_chunk(b"zTXt", b"Comment\0\0" + data))


def pixel_bomb() -> bytes:
    """Return a PNG of 4 x 4 pixels with the data of 256 MiB."""
    packed = zlib.compressobj(1)
    data = b"".join(packed.compress(bytes(1 << 20)) for _ in range(256)) + packed.flush()
    return png_of(4, 4, data)


def resized_jpeg(width: int, height: int) -> bytes:
    """Return a small JPEG whose header has another width and height."""
    whole = bytearray(encode(gradient(), "JPEG"))
    place = whole.index(b"\xff\xc0") + 5
    whole[place : place + 4] = struct.pack(">HH", height, width)
    return bytes(whole)


def resized_webp(width: int, height: int) -> bytes:
    """Return a small lossless WebP whose header has another width and height."""
    whole = bytearray(encode(gradient(), "WEBP", lossless=True))
    assert whole[12:16] == b"VP8L"
    bits = struct.unpack("<I", whole[21:25])[0] & ~0xFFFFFFF
    whole[21:25] = struct.pack("<I", bits | (width - 1) | (height - 1) << 14)
    return bytes(whole)


def many_frames(n: int) -> bytes:
    """Return a GIF of red, then black frames."""
    first = Image.new("P", (64, 64), 1)
    first.putpalette([0, 0, 0, 255, 0, 0])
    black = first.copy()
    black.paste(0, (0, 0, 64, 64))
    two = encode(first, "GIF", save_all=True, append_images=[black], duration=10)
    start = two.rindex(b"\x21\xf9\x04")  # of the second frame
    return two[:start] + two[start:-1] * (n - 1) + two[-1:]


def many_scans(n: int, side: int) -> bytes:
    """Return a progressive JPEG that passes `n` times more than others over its pixels."""
    whole = encode(Image.new("L", (side, side)), "JPEG", progressive=True)
    start = whole.rindex(b"\xff\xda")
    return whole[:start] + whole[start:-2] * n + whole[-2:]


def endless_tiff() -> bytes:
    """Return a TIFF whose directory says that the next one is itself, and so are those in it."""
    tags = [
        (256, 3, 1, 2),  # width
        (257, 3, 1, 2),  # height
        (258, 3, 1, 8),  # bits
        (259, 3, 1, 1),  # not compressed
        (262, 3, 1, 1),  # black is 0
        (273, 4, 1, 8),  # place of its pixels
        (277, 3, 1, 1),  # samples of a pixel
        (278, 3, 1, 2),  # rows of a strip
        (279, 4, 1, 4),  # bytes of the strip
        (330, 4, 1, 12),  # directories below: itself
        (34665, 4, 1, 12),  # that of EXIF: itself
    ]
    directory = struct.pack("<H", len(tags))
    for number, kind, count, value in tags:
        directory += struct.pack("<HHII", number, kind, count, value)
    return (
        b"II*\0"
        + struct.pack("<I", 12)
        + bytes([10, 20, 30, 40])
        + directory
        + struct.pack("<I", 12)
    )
