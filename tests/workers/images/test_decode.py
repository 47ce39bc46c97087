"""Images of all formats, as RGB and upright."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.workers.images import encoded
from tests.workers.images.encoded import encode, gradient
from workers.images.decode import decode
from workers.images.refused import ImageRefused

WHITE, RED = (255, 255, 255), (255, 0, 0)
ORIENTATIONS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""By the number in EXIF: how an upright image is turned to be stored."""


def decoded(data: bytes, max_pixels: int = 10_000) -> Image.Image:
    image = decode(io.BytesIO(data), max_pixels)
    assert image.mode == "RGB"
    return image


def values(image: Image.Image) -> Any:
    return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    ("kind", "mode", "options", "within"),
    [
        ("PNG", "RGB", {}, 0),
        ("PNG", "RGBA", {}, 0),
        ("PNG", "P", {}, 0),
        ("PNG", "L", {}, 0),
        ("PNG", "LA", {}, 0),
        ("PNG", "1", {}, 0),
        ("JPEG", "RGB", {"quality": 100, "subsampling": 0}, 4),
        ("JPEG", "RGB", {"quality": 100, "subsampling": 0, "progressive": True}, 4),
        ("JPEG", "L", {"quality": 100}, 4),
        ("JPEG", "CMYK", {"quality": 100, "subsampling": 0}, 6),
        ("GIF", "P", {}, 0),
        ("GIF", "L", {}, 0),
        ("WEBP", "RGB", {"lossless": True}, 0),
        ("WEBP", "RGBA", {"lossless": True}, 0),
        ("WEBP", "RGB", {"quality": 100}, 40),
        ("TIFF", "RGB", {}, 0),
        ("TIFF", "RGB", {"compression": "tiff_lzw"}, 0),
        ("TIFF", "RGB", {"compression": "tiff_adobe_deflate", "big_tiff": True}, 0),
        ("TIFF", "RGBA", {}, 0),
        ("TIFF", "CMYK", {}, 0),
        ("TIFF", "P", {}, 0),
        ("TIFF", "1", {"compression": "group4"}, 0),
        ("BMP", "RGB", {}, 0),
        ("BMP", "P", {}, 0),
        ("BMP", "1", {}, 0),
    ],
)
def test_formats_keep_their_colours(
    kind: str, mode: str, options: dict[str, Any], within: int
) -> None:
    image = gradient().convert(mode)
    found = decoded(encode(image, kind, **options))
    assert found.size == image.size
    assert np.abs(values(found) - values(image)).max() <= within


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("PNG", {}),
        ("JPEG", {"quality": 100, "subsampling": 0}),
        ("TIFF", {}),
        ("WEBP", {"lossless": True}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_images_are_turned_upright(kind: str, options: dict[str, Any], orientation: int) -> None:
    turn = ORIENTATIONS[orientation]
    stored = gradient() if turn is None else gradient().transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    found = decoded(encode(stored, kind, exif=exif, **options))
    assert found.size == gradient().size
    assert np.abs(values(found) - values(gradient())).max() <= 4


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_what_is_transparent_is_white(kind: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 255))
    image.putpixel((1, 0), (0, 0, 0, 0))
    found = decoded(encode(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert [found.getpixel((x, 0)) for x in range(2)] == [RED, WHITE]


def test_half_of_black_on_white_is_grey() -> None:
    assert decoded(encode(Image.new("LA", (1, 1), (0, 128)), "PNG")).getpixel((0, 0)) == (127,) * 3


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_transparent_colour_is_white(kind: str, mode: str) -> None:
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((1, 0), 0)
    if mode == "L":
        image = Image.new("L", (2, 1), 9)
        image.putpixel((1, 0), 0)
    found = decoded(encode(image, kind, transparency=0))
    assert found.getpixel((0, 0)) == (RED if mode == "P" else (9, 9, 9))
    assert found.getpixel((1, 0)) == WHITE


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_of_16_bits_the_upper_half_counts(kind: str) -> None:
    grey = Image.fromarray(np.array([[0, 255, 256, 40_000, 65_535]], np.uint16))
    assert grey.mode == "I;16"
    found = decoded(encode(grey, kind))
    assert [found.getpixel((x, 0)) for x in range(5)] == [(n,) * 3 for n in (0, 0, 1, 156, 255)]


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_longer_values_are_spread_from_black_to_white(dtype: type[np.generic]) -> None:
    deep = Image.fromarray(np.array([[-1000, 0, 1000]], dtype))
    found = decoded(encode(deep, "TIFF"))
    assert [found.getpixel((x, 0)) for x in range(3)] == [(n,) * 3 for n in (0, 128, 255)]
    assert decoded(encode(Image.fromarray(np.ones((2, 2), dtype)), "TIFF")).size == (2, 2)


def test_of_an_animation_the_first_frame_counts() -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "MPO"):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:])
        red, green, blue = values(decoded(data))[0, 0]
        assert red > 240, kind
        assert green < 10, kind
        assert blue < 10, kind


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200)])
def test_the_smallest_and_longest_images_are_taken(kind: str, size: tuple[int, int]) -> None:
    found = decoded(encode(Image.new("RGB", size, "red"), kind))
    assert found.size == size
    assert np.abs(values(found)[0, 0] - RED).max() < 3


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty, of 0 bytes: send png, jpeg, gif, webp, tiff or bmp"),
        (b"%PDF-1.7 and more", "is a PDF document: send png"),
        (b'<?xml version="1.0"?><!-- a --><svg width="1"/>', "is an SVG drawing: send png"),
        (b"\n<!DOCTYPE html><html></html>", "is a page of HTML: send png"),
        (b"\0\0\0\x1cftypheic\0\0\0\0", "is a HEIF or AVIF image, or a video: send png"),
        (b"\0\0\1\0\1\0\x10\x10", "is in no known format: send png"),
        (b"SIMPLE  =                    T", "is in no known format: send png"),
        (b"BM", "its data is damaged, cut off"),
        (b"\xff\xd8\xff\xe0", "its data is damaged, cut off"),
        (b"RIFF\0\0\0\0WEBPVP8L", "has 1 x 1|is damaged, cut off"),
    ],
)
def test_what_is_no_image_is_called_by_its_name(data: bytes, said: str) -> None:
    with pytest.raises(ImageRefused, match=said):
        decoded(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("part", [0.3, 0.6, 0.9])
def test_a_part_of_an_image_is_refused(kind: str, part: float) -> None:
    whole = encode(gradient(48, 64), kind, **({"lossless": True} if kind == "WEBP" else {}))
    with pytest.raises(ImageRefused, match="its data is damaged, cut off"):
        decoded(whole[: int(len(whole) * part)])


@pytest.mark.parametrize(
    "make",
    [
        lambda: encoded.png_of(200, 100, b""),
        lambda: encoded.resized_jpeg(200, 100),
        lambda: encoded.resized_webp(200, 100),
        lambda: encode(Image.new("1", (200, 100)), "GIF"),
        lambda: encode(Image.new("1", (200, 100)), "TIFF", compression="group4"),
        lambda: encode(Image.new("1", (200, 100)), "BMP"),
    ],
    ids=["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"],
)
def test_too_many_pixels_are_refused_before_they_are_decoded(make: Callable[[], bytes]) -> None:
    said = "has 200 x 100 = 20000 pixels, and at most 19999 are allowed"
    with pytest.raises(ImageRefused, match=said):
        decoded(make(), 19_999)


def test_the_first_frame_of_a_gif_may_not_be_larger_than_its_screen_says() -> None:
    data = bytearray(encode(Image.new("P", (200, 100)), "GIF"))
    data[6:10] = b"\1\0\1\0"
    with pytest.raises(ImageRefused, match="200 x 100 = 20000 pixels"):
        decoded(bytes(data), 19_999)


@pytest.mark.parametrize("kind", ["lossy", "lossless", "extended"])
def test_a_webp_says_its_size_in_three_ways(kind: str) -> None:
    image = gradient(30, 20).convert("RGBA" if kind == "extended" else "RGB")
    if kind == "extended":
        image.putalpha(128)
    data = encode(image, "WEBP", lossless=kind == "lossless")
    assert data[12:16] == {"lossy": b"VP8 ", "lossless": b"VP8L", "extended": b"VP8X"}[kind]
    with pytest.raises(ImageRefused, match="30 x 20 = 600 pixels"):
        decoded(data, 599)
    assert decoded(data, 600).size == (30, 20)


def test_a_longer_strip_is_refused() -> None:
    with pytest.raises(ImageRefused, match="201 x 1 pixels: its longer side may be at most 200 "):
        decoded(encode(Image.new("RGB", (201, 1)), "PNG"))


@pytest.mark.parametrize("damage", [b"", b"\0" * 8, b"Exif\0\0MM\0*\0\0\xff\xff"])
def test_damaged_exif_does_no_harm(damage: bytes) -> None:
    assert decoded(encode(gradient(), "JPEG", exif=b"Exif\0\0" + damage)).size == gradient().size


def test_a_decoders_words_stay_here() -> None:
    whole = encode(gradient(48, 64), "PNG")
    with pytest.raises(ImageRefused) as refused:
        decoded(whole[:80])
    assert not re.search(r"0x|truncated|bytes|PIL|object|zlib", str(refused.value))
