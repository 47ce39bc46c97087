"""Processor time of preparing images, beside that of transformers' image processors."""

from __future__ import annotations

import io
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from transformers import AutoImageProcessor

from tests.helpers.tiny_processors import save_processor
from tests.workers.images.encoded import encode
from workers.images.preparation import Preparation

MOST = 1.3
ROUNDS = 15
CLIP = {"height": 336, "width": 336}
REAL: dict[str, dict[str, Any]] = {
    "idefics3": {"size": {"longest_edge": 1456}, "max_image_size": {"longest_edge": 364}},
    "llava": {"size": {"shortest_edge": 336}, "crop_size": CLIP},
    "smolvlm": {"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}},
}
"""Sizes of real checkpoints."""


@pytest.mark.full
@pytest.mark.parametrize("kind", REAL)
def test_an_image_takes_little_more_time_than_in_transformers(kind: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    save_processor(kind, tmp_path, **REAL[kind])
    photo = Image.effect_mandelbrot((640, 480), (-2, -1.2, 1, 1.2), 100).convert("RGB")
    file = tmp_path / "image.jpeg"
    file.write_bytes(encode(photo, "JPEG", quality=90))
    job = {"file": str(file), "detail": "auto", "out": str(tmp_path / "out")}
    prepared = Preparation(tmp_path, max_pixels=10**7)
    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    def theirs() -> None:
        image = Image.open(io.BytesIO(file.read_bytes())).convert("RGB")
        processor(images=image, return_tensors="np")

    def ours() -> None:
        assert "image" in prepared.answer(job)
        (tmp_path / "out").unlink()

    times: dict[Callable[[], None], list[float]] = {ours: [], theirs: []}
    for _ in range(ROUNDS):
        for work, taken in times.items():
            began = time.process_time()
            work()
            taken.append(time.process_time() - began)
    mine, other = (statistics.median(taken[1:]) for taken in times.values())
    print(f"{kind}: {1000 * mine:.1f} ms, and {1000 * other:.1f} ms in transformers")
    assert mine < MOST * other
