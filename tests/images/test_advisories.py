"""Advisories on images in servers of models, each by what it shows.

Here are those that end at an image that was made ready, or refused: by the real process, which
decodes with Pillow. Those of unbounded fetches (CVE-2026-0599) and of redirects (CVE-2025-6242,
CVE-2026-24779, CVE-2026-33626, CVE-2026-63764) are in test_fetch.py.
"""

from __future__ import annotations

import base64
import io
import re
import struct
import time
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from PIL import Image as Pillow

from tests.helpers.tiny_processors import save_processor
from tgi_async.errors import ValidationError
from tgi_async.images.addresses import Domains
from tgi_async.images.images import ImageLimits, Images, ImageSource
from tgi_async.telemetry.images import ImageCounts

pytestmark = pytest.mark.asyncio(loop_scope="module")

LIMITS = ImageLimits(
    domains=Domains(),
    max_images=4,
    max_pixels=64_000_000,
    max_encoded=8 << 20,
    fetch_seconds=5.0,
    memory=64 << 20,
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def images(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Images]:
    """Of an Idefics 3 with small numbers."""
    folder = tmp_path_factory.mktemp("a")
    (folder / "model").mkdir()
    (folder / "scratch").mkdir()
    save_processor("idefics3", folder / "model")
    (folder / "model" / "config.json").write_text('{"model_type": "idefics3"}')
    images = await Images.start(folder / "model", str(folder / "scratch"), LIMITS, ImageCounts())
    yield images
    images.close()


def encoded(size: tuple[int, int], kind: str = "PNG", mode: str = "RGB") -> bytes:
    file = io.BytesIO()
    Pillow.new(mode, size, 200).save(file, kind)
    return file.getvalue()


def source(data: bytes, mime: str = "image/png") -> ImageSource:
    return ImageSource(f"data:{mime};base64,{base64.b64encode(data).decode()}", field="image")


async def refusal(images: Images, data: bytes, mime: str = "image/png") -> str:
    """Why it is refused; what comes after it is not."""
    began = time.monotonic()
    with pytest.raises(ValidationError) as refused:
        await images.ready([source(data, mime)], "c")
    assert time.monotonic() - began < 30
    assert refused.value.param == "image"
    assert await images.ready([source(encoded((30, 20)))], "c")
    return str(refused.value)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 200), (200, 3)])
async def test_the_smallest_images_are_images(images: Images, size: tuple[int, int]) -> None:
    # CVE-2026-22773: an image of one pixel ended the engine.
    (ready,) = await images.ready([source(encoded(size))], "c")
    assert (ready.prepared.width, ready.prepared.height) == size
    assert ready.prepared.n_tokens > 0
    sizes = [array.offset for array in ready.arrays]
    assert max(sizes) < Path(ready.path).stat().st_size  # noqa: ASYNC240


@pytest.mark.parametrize("n", [20, 60, 100])
async def test_what_a_decoder_says_of_bad_bytes_stays_here(images: Images, n: int) -> None:
    # CVE-2026-22778: the library's error had the address of an object in the heap.
    whole = encoded((100, 100), "JPEG")
    said = await refusal(images, whole[: len(whole) * n // 120], "image/jpeg")
    assert not re.search(r"0x[0-9a-f]{4}|<|object at|BytesIO|PIL|Traceback|/", said)
    assert "invalid image: " in said


def chunk(kind: bytes, data: bytes) -> bytes:
    check = zlib.crc32(kind + data)
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)


def png(width: int, height: int) -> bytes:
    """Black, of one bit a pixel: nothing as a file, much as pixels."""
    rows = zlib.compress(bytes((width + 7) // 8 + 1) * height, 9)
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


async def test_an_image_of_too_many_pixels_is_not_decoded(images: Images) -> None:
    # A small file of 144 million pixels, which takes 432 MB as RGB.
    bomb = png(12_000, 12_000)
    assert len(bomb) < 100_000
    began = time.monotonic()
    said = await refusal(images, bomb)
    assert time.monotonic() - began < 5
    assert "12000 x 12000 = 144000000 pixels, and at most 64000000 are allowed" in said


async def test_one_frame_of_ten_thousand_is_decoded(images: Images) -> None:
    frames = [Pillow.new("P", (16, 16), n % 251) for n in range(10_000)]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    began = time.monotonic()
    (ready,) = await images.ready([source(file.getvalue(), "image/gif")], "c")
    assert (ready.prepared.width, ready.prepared.height) == (16, 16)
    assert time.monotonic() - began < 5


async def test_a_tiff_whose_directories_go_in_a_circle_is_one_image(images: Images) -> None:
    tiff = bytearray(encoded((16, 9), "TIFF"))
    (first,) = struct.unpack_from("<I", tiff, 4)
    (n_entries,) = struct.unpack_from("<H", tiff, first)
    struct.pack_into("<I", tiff, first + 2 + 12 * n_entries, first)
    began = time.monotonic()
    (ready,) = await images.ready([source(bytes(tiff), "image/tiff")], "c")
    assert (ready.prepared.width, ready.prepared.height) == (16, 9)
    assert time.monotonic() - began < 5


FITS = {"SIMPLE": "T", "BITPIX": "8", "NAXIS": "0"}


async def test_formats_that_nobody_sends_are_not_opened(images: Images) -> None:
    # CVE-2026-40192: a FITS file that unpacks without end.
    cards = [
        "SIMPLE  =                    T",
        "BITPIX  =                    8",
        "NAXIS   = 0",
        "END",
    ]
    fits = "".join(card.ljust(80) for card in cards).ljust(2880).encode()
    for data in (fits, b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"<svg></svg>"):
        assert "png, jpeg, gif, webp, tiff or bmp" in await refusal(images, data)


async def test_frames_with_commas_between_are_no_image(images: Images) -> None:
    # CVE-2026-5497: thousands of JPEG frames in one data URL.
    frame = base64.b64encode(encoded((16, 16), "JPEG")).decode()
    url = "data:video/jpeg;base64," + ",".join([frame] * 2000)
    with pytest.raises(ValidationError, match="base64 encoding is invalid"):
        await images.ready([ImageSource(url)], "c")
