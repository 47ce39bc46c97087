"""The process that prepares images, as the server runs it."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_processors import save_processor
from tests.workers.images import encoded
from tests.workers.images.encoded import encode, gradient
from tgi_async.images.family import Family
from workers.images.process import NICENESS

MAX_PIXELS = 4_000_000
SECONDS = 10.0
"""More than any of these takes on a busy machine, and less than a process is given."""
MEMORY = 100 << 20
"""Bytes that any of these may take beyond the largest image that is allowed."""


class Process:
    """A running process for a model."""

    def __init__(self, folder: Path) -> None:
        self.running = subprocess.Popen(
            [sys.executable, "-m", "workers.images.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        self.file, self.out = folder / "image", folder / "arrays"
        self._write({"folder": str(folder), "max_pixels": MAX_PIXELS, "trust_remote_code": False})

    def ask(self, **line: Any) -> dict[str, Any]:
        assert self.running.stdout is not None
        self._write(line)
        answer: dict[str, Any] = json.loads(self.running.stdout.readline())
        return answer

    def prepare(self, data: bytes, detail: str = "auto") -> dict[str, Any]:
        self.file.write_bytes(data)
        return self.ask(file=str(self.file), detail=detail, out=str(self.out))

    def peak(self) -> int:
        """Return the most bytes of memory that it ever had."""
        status = Path(f"/proc/{self.running.pid}/status").read_text()
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        assert found is not None
        return int(found[1]) * 1024

    def _write(self, line: dict[str, Any]) -> None:
        assert self.running.stdin is not None
        self.running.stdin.write(json.dumps(line).encode() + b"\n")
        self.running.stdin.flush()


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    folder = tmp_path_factory.mktemp("idefics3")
    (folder / "config.json").write_text('{"model_type": "idefics3"}')
    save_processor("idefics3", folder)
    process = Process(folder)
    largest = process.prepare(encoded.large_png(2000, 2000))
    assert largest["image"]["width"] * largest["image"]["height"] == MAX_PIXELS
    yield process
    process.running.communicate()


def test_it_describes_its_model(process: Process) -> None:
    family = Family(**process.ask(describe=True)["family"])
    assert family.kind == "idefics3"
    assert family.placeholder == "<image>"
    assert "<row_1_col_1>" in family.reserved


def test_an_image_becomes_a_file_of_arrays(process: Process) -> None:
    image = process.prepare(encode(gradient(90, 60), "PNG"))["image"]
    assert (image["width"], image["height"]) == (90, 60)
    assert image["text"].count("<image>") == image["n_tokens"] == 4 * 13
    assert len(bytes.fromhex(image["digest"])) == 16
    assert image["n_bytes"] == process.out.stat().st_size
    pixels = image["arrays"][0]
    assert (pixels["name"], pixels["shape"]) == ("pixel_values", [1, 13, 3, 28, 28])
    kept = np.memmap(process.out, pixels["dtype"], "r", pixels["offset"], tuple(pixels["shape"]))
    assert -1 <= kept.min() < kept.max() <= 1


def test_digests_tell_images_and_details_apart(process: Process) -> None:
    images = [encode(gradient(), "PNG"), encode(gradient(), "BMP"), encode(gradient(13), "PNG")]
    digests = [process.prepare(image)["image"]["digest"] for image in images]
    assert digests[0] == digests[1] != digests[2]
    low = process.prepare(images[0], "low")["image"]
    assert low["digest"] != digests[0]
    assert low["n_tokens"] == 4
    assert process.prepare(images[0], "high")["image"]["digest"] == digests[0]


BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty"),
    "a PDF called png": (lambda: b"%PDF-1.7\n" + bytes(1000), "is a PDF document"),
    "SVG": (lambda: b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is an SVG drawing"),
    "FITS": (lambda: b"SIMPLE  =                    T" + bytes(3000), "no known format"),
    "truncated png": (lambda: encode(gradient(90, 60), "PNG")[:200], "damaged, cut off"),
    "truncated jpeg": (lambda: encode(gradient(90, 60), "JPEG")[:700], "damaged, cut off"),
    "12,000 x 12,000": (lambda: encoded.large_png(12_000, 12_000), "12000 x 12000 = 144000000"),
    "a jpeg of 65,000 x 65,000": (lambda: encoded.resized_jpeg(65_000, 65_000), "65000 x 65000"),
    "a webp of 16,383 x 16,383": (lambda: encoded.resized_webp(16_383, 16_383), "16383 x 16383"),
    "a jpeg of 10,000 passes": (
        lambda: encoded.many_scans(10_000, 2000),
        "passes, and at most 100",
    ),
    "201:1": (lambda: encode(Image.new("RGB", (201, 1)), "PNG"), "at most 200 times"),
    "a text of 256 MiB": (encoded.text_bomb, "damaged, cut off"),
}
GOOD: dict[str, Callable[[], bytes]] = {
    "1x1": lambda: encode(Image.new("RGB", (1, 1), "red"), "PNG"),
    "200:1": lambda: encode(Image.new("RGB", (200, 1), "red"), "PNG"),
    "10,000 frames": lambda: encoded.many_frames(10_000),
    "nested TIFF": encoded.endless_tiff,
    "more pixels than its size": encoded.pixel_bomb,
}


@pytest.mark.parametrize("name", [*BAD, *GOOD])
def test_odd_images_take_little_time_and_memory(process: Process, name: str) -> None:
    data = BAD[name][0]() if name in BAD else GOOD[name]()
    before = process.peak()
    began = time.monotonic()
    answer = process.prepare(data)
    assert time.monotonic() - began < SECONDS
    assert process.peak() - before < MEMORY
    assert process.running.poll() is None
    if name in BAD:
        assert BAD[name][1] in answer["error"]
    else:
        assert answer["image"]["n_tokens"] % 4 == 0


def test_it_runs_without_torch_at_a_low_priority(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    save_processor("llava", tmp_path)
    image = tmp_path / "image"
    image.write_bytes(encode(gradient(), "PNG"))
    code = """
import sys, os
from workers.images import process
process.main()
loaded = [name for name, module in sys.modules.items() if name.split(".")[0] == "torch" and module]
print(loaded, os.nice(0), file=sys.stderr)
"""
    lines = [
        {"folder": str(tmp_path), "max_pixels": MAX_PIXELS},
        {"file": str(image), "detail": "auto", "out": str(tmp_path / "out")},
    ]
    run = subprocess.run(
        [sys.executable, "-c", code],
        input="".join(json.dumps(line) + "\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "image" in json.loads(run.stdout)
    assert run.stderr.splitlines()[-1] == f"[] {min(os.nice(0) + NICENESS, 19)}"


def test_its_memory_is_limited(process: Process) -> None:
    process.ask(describe=True)
    soft, _ = resource.prlimit(process.running.pid, resource.RLIMIT_AS)
    assert soft < 4 << 30
