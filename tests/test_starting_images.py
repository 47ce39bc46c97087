from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tests.doubles.image_process import COMMAND
from tgi_async.images import shared_memory
from tgi_async.settings import Settings
from tgi_async.starting_images import FILES, StartingImages
from tgi_async.telemetry.images import ImageCounts

NEVER = ("/nowhere/there-is-no-such-program",)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", "/nowhere")
    (tmp_path / "scratch").mkdir()
    return str(tmp_path / "scratch")


def starting(
    model: Path, scratch: str, settings: Settings | None = None, command: tuple[str, ...] = COMMAND
) -> tuple[StartingImages, ImageCounts]:
    counts = ImageCounts()
    settings = settings or Settings()
    return StartingImages(settings, model, scratch, counts, command=command), counts


@pytest.mark.parametrize("file", FILES)
async def test_they_start_while_the_model_loads(
    model: Path, scratch: str, file: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    (model / file).write_text("{}")
    settings = Settings(
        max_images_per_request=3, image_cache_memory=10**9, allow_image_domains=("a.example",)
    )
    start, counts = starting(model, scratch, settings)
    async with asyncio.timeout(20):
        while not os.listdir(scratch):  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    images = await start.images(taken=True)
    assert images is not None
    assert images.family.kind == "mock"
    assert images.max_images == 3
    assert counts.store is images.store
    assert images.store.max_bytes == 10**9
    assert "images: 3 in a request, 1.00 GB of them prepared; fetched from: a.exam" in caplog.text
    await start.end()
    assert os.listdir(scratch) == []


async def test_a_model_of_text_starts_no_process(model: Path, scratch: str) -> None:
    start, counts = starting(model, scratch, command=NEVER)
    assert await start.images(taken=False) is None
    assert counts.store is None
    await start.end()


async def test_a_model_that_takes_them_needs_no_file_of_that_name(
    model: Path, scratch: str
) -> None:
    start, _ = starting(model, scratch)
    assert await start.images(taken=True) is not None
    await start.end()


async def test_what_was_started_in_vain_ends(model: Path, scratch: str) -> None:
    (model / FILES[0]).write_text("{}")
    start, _ = starting(model, scratch)
    assert await start.images(taken=False) is None
    assert os.listdir(scratch) == []
    for _ in range(2):
        await start.end()


async def test_images_that_are_not_served_are_a_warning(
    model: Path, scratch: str, caplog: pytest.LogCaptureFixture
) -> None:
    (model / "refused").write_text("it draws, and does not look")
    start, counts = starting(model, scratch)
    assert await start.images(taken=True) is None
    assert "all others served: it draws, and does not look" in caplog.text
    assert counts.store is None
    await start.end()
    assert os.listdir(scratch) == []


async def test_a_start_that_fails_elsewhere_leaves_nothing(model: Path, scratch: str) -> None:
    (model / FILES[0]).write_text("{}")
    start, _ = starting(model, scratch)
    await asyncio.sleep(0)
    await start.end()
    assert os.listdir(scratch) == []
