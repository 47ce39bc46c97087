"""Encoded bytes to pixels: one upright RGB image, of six formats, within a number of pixels.

Bytes come from anybody. A format is recognized by its first bytes and opened by that one decoder;
the size is checked before pixels are loaded; only the first frame is decoded. What a decoder says
of bad bytes stays here, as it may reveal something of this process.
"""

from __future__ import annotations

import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from workers.images.refused import ImageRefused

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

Image.MAX_IMAGE_PIXELS = None  # Pillow's own limit, which says nothing to a client: see check_size

ALLOWED = "png, jpeg, gif, webp, tiff or bmp"
DECODERS = (
    *(BmpImagePlugin, GifImagePlugin, JpegImagePlugin),
    *(PngImagePlugin, TiffImagePlugin, WebPImagePlugin),
)
"""Imported here, so that an image makes Pillow load no others."""
SIGNS = {
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"\xff\xd8\xff": "JPEG",
    b"GIF87a": "GIF",
    b"GIF89a": "GIF",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"II+\0": "TIFF",
    b"MM\0+": "TIFF",
    b"BM": "BMP",
}
"""Pillow's name of a format, by its first bytes. WEBP has its own behind a length."""
OTHERS = (
    (b"%pdf", "a PDF document"),
    (b"<svg", "an SVG drawing"),
    (b"<html", "a page of HTML"),
    (b"<!doctype html", "a page of HTML"),
    (b"ftyp", "a HEIF or AVIF image, or a video"),
)
"""What is often sent in place of an image, by what is in its first bytes, in small letters."""
HEAD = 512
"""First bytes that are looked at."""
MAX_RATIO = 200
"""Most times that the longer side is as long as the shorter one. Some models refuse more, and to
others it is a huge image: of the shorter side they make a fixed number of pixels."""
MAX_SCANS = 100
"""Most passes over its pixels that a JPEG may take; common ones take ten. Passes of a few bytes
would let a small file take minutes."""


def decode(file: BinaryIO, max_pixels: int) -> Image.Image:
    """Return the image in a file, RGB and upright.

    Raises:
        ImageRefused: it is none that is allowed, is damaged, or has too many pixels.
    """
    head = file.read(HEAD)
    file.seek(0)
    if not head:
        raise ImageRefused(f"the image is empty, of 0 bytes: send {ALLOWED}")
    kind = _kind(head)
    if kind == "WEBP" and (size := _webp_size(head)):
        check_size(size, max_pixels)  # its decoder makes room for all pixels when it opens a file
    if kind == "JPEG":
        _check_scans(file)
    with _damaged():
        image: Image.Image = Image.open(file, formats=[kind])
    check_size(image.size, max_pixels)
    with _damaged():
        image.load()
    _turn_upright(image)
    return _rgb(image)


def check_size(size: tuple[int, int], max_pixels: int) -> None:
    """Raise ImageRefused if an image of this width and height is too large or too long."""
    width, height = size
    if width * height > max_pixels:
        raise ImageRefused(
            f"the image has {width} x {height} = {width * height} pixels, "
            f"and at most {max_pixels} are allowed: send a smaller one"
        )
    if max(size) > MAX_RATIO * min(size):
        raise ImageRefused(
            f"the image has {width} x {height} pixels: its longer side may be at most {MAX_RATIO} "
            "times the shorter one"
        )


def _kind(head: bytes) -> str:
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    for sign, kind in SIGNS.items():
        if head.startswith(sign):
            return kind
    lower = head.lower()
    for sign, name in OTHERS:
        if sign in lower:
            raise ImageRefused(f"the image is {name}: send {ALLOWED}")
    raise ImageRefused(f"the image is in no known format: send {ALLOWED}")


def _check_scans(file: BinaryIO) -> None:
    n_scans = file.read().count(b"\xff\xda")
    file.seek(0)
    if n_scans > MAX_SCANS:
        raise ImageRefused(
            f"the image is a JPEG of {n_scans} passes, and at most {MAX_SCANS} are allowed: "
            "send it anew encoded"
        )


def _webp_size(head: bytes) -> tuple[int, int] | None:
    """Return what a WebP's header says of its width and height, if it is whole."""

    def number(start: int, length: int) -> int:
        return int.from_bytes(head[start : start + length], "little")

    match head[12:16]:
        case b"VP8X":
            return number(24, 3) + 1, number(27, 3) + 1
        case b"VP8L":
            return (number(21, 4) & 0x3FFF) + 1, (number(21, 4) >> 14 & 0x3FFF) + 1
        case b"VP8 ":
            return number(26, 2) & 0x3FFF or 1, number(28, 2) & 0x3FFF or 1
    return None


def _turn_upright(image: Image.Image) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception:  # orientation is in a block of its own, whose damage harms nothing else
        return


@contextmanager
def _damaged() -> Iterator[None]:
    """Say in our words what a decoder says of damaged bytes."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except MemoryError:
        raise
    except Exception as error:  # decoders raise whatever they meet: struct.error, IndexError, ...
        raise ImageRefused(
            "the image cannot be decoded: its data is damaged, cut off or of a rare kind. Check "
            "that all of it was sent, or encode it anew"
        ) from error


def _rgb(image: Image.Image) -> Image.Image:
    """Return an image as RGB: what is transparent becomes white, deep values 8 bits."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return Image.fromarray(_eight_bits(image)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Return grey values of more than 8 bits as bytes.

    Of 16 bits, it is their upper half. Longer ones and fractions have no fixed white: their least
    becomes black and their greatest white.
    """
    values: NDArray[np.generic] = np.asarray(image)
    if image.mode.startswith("I;16"):
        return (values.astype(np.uint16) >> 8).astype(np.uint8)
    numbers = np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)
    least, most = numbers.min(), numbers.max()
    scaled: NDArray[np.float64] = (numbers - least) * (255 / max(most - least, 1e-30))
    return scaled.round().astype(np.uint8)
