"""Where images of a request come from, and the bytes of those that it has in itself."""

from __future__ import annotations

import binascii
from typing import NamedTuple

PIECE = 1 << 18
"""Characters that are decoded at once: other threads wait for no more than that."""
WHITE = b" \t\r\n"
STANDARD = bytes.maketrans(b"-_", b"+/")
"""From the alphabet for URLs to the usual one."""
ESCAPES = {b"%2B": b"+", b"%2F": b"/", b"%3D": b"=", b"%0A": b"", b"%0D": b"", b"%20": b""}
LONGEST_HEAD = 1024
"""Most characters before the comma of a `data:` URL."""


class ImageSource(NamedTuple):
    """An image as a request names it."""

    url: str
    """`data:...`, `http://...` or `https://...`"""
    detail: str = "auto"
    """OpenAI's: `auto`, `low` or `high`."""
    field: str = ""
    """Its name for messages, such as `messages[0].content[1].image_url`."""


class Refused(Exception):
    """An image cannot be taken. The message is for the client, and has no words of a library."""


def too_large(size: int, most: int) -> Refused:
    """Return the refusal of an image of `size` bytes, in TGI's words."""
    return Refused(
        f"Image size {size} bytes exceeds maximum allowed size of {most} bytes. The limit is set "
        "by the server's --max-image-fetch-size"
    )


def is_data(url: str) -> bool:
    """Return whether the image is in the URL itself."""
    return url[:5].lower() == "data:"


def data_of(url: str, most: int) -> bytes:
    """Return the bytes in a `data:` URL, which are at most `most`. Takes time; raises Refused."""
    comma = url.find(",", 0, LONGEST_HEAD)
    marked = comma > 0 and url[:comma].lower().replace(" ", "").endswith(";base64")
    if not marked:
        raise Refused("invalid image content: a data: URL must be data:<type>;base64,<text>")
    if (len(url) - comma) // 4 * 3 > 3 * (most + 1):
        # It has more escapes and line breaks than characters, if it fits at all.
        raise too_large((len(url) - comma) // 4 * 3, most)
    try:
        text = url[comma + 1 :].encode("ascii")
    except UnicodeEncodeError:
        raise _invalid("it has characters that are not ASCII") from None
    if b"%" in text:
        for escape, meaning in ESCAPES.items():
            text = text.replace(escape, meaning).replace(escape.lower(), meaning)
    found = _decoded(text.rstrip(WHITE + b"="))
    if len(found) > most:
        raise too_large(len(found), most)
    if not found:
        raise _invalid("it is empty")
    return found


def _decoded(text: bytes) -> bytes:
    found = bytearray()
    rest = b""
    for start in range(0, len(text), PIECE):
        rest += text[start : start + PIECE].translate(STANDARD, WHITE)
        whole = len(rest) & ~3
        found += _piece(rest[:whole])
        rest = rest[whole:]
    if len(rest) == 1:
        raise _invalid("its length fits no number of bytes")
    if rest:
        found += _piece(rest + b"=" * (4 - len(rest)), padded=True)
    return bytes(found)


def _piece(text: bytes, *, padded: bool = False) -> bytes:
    """Decode whole groups of four characters, of which only the last may be `padded`."""
    if not padded and b"=" in text:
        raise _invalid("it goes on behind its end, which = marks")
    try:
        return binascii.a2b_base64(text, strict_mode=True)
    except binascii.Error:
        raise _invalid("it has other characters than A-Z a-z 0-9 + / - _ =") from None


def _invalid(why: str) -> Refused:
    return Refused(f"base64 encoding is invalid: {why}")
