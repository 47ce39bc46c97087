from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.image_process import COMMAND, asked
from tests.helpers.vision_tokens import token_id
from tgi_async.images.preparer import NotServed, Preparer
from tgi_async.images.source import Refused
from tgi_async.images.store import EncodedFile, remove
from tgi_async.wire.messages import PixelArray


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    return tmp_path / "model"


@pytest.fixture
def preparer(model: Path) -> Iterator[Preparer]:
    with contextlib.closing(made(model)) as preparer:
        yield preparer


def made(model: Path, **settings: Any) -> Preparer:
    given: dict[str, Any] = {"n_processes": 1, "max_pixels": 100, "trust_remote_code": False}
    return Preparer(model, command=COMMAND, **{**given, **settings})


def encoded(tmp_path: Path, text: str) -> EncodedFile:
    path = tmp_path / f"encoded {text}"
    path.write_text(text)
    return EncodedFile(str(path), remove)


async def test_a_model_is_described(preparer: Preparer) -> None:
    family = await preparer.describe()
    assert family.kind == "mock"
    assert family.image_token_id == token_id("<image>")
    assert family.reserved == ("<image>",)


async def test_a_model_that_is_not_served_has_a_reason(preparer: Preparer, model: Path) -> None:
    (model / "refused").write_text("it draws, and does not look")
    with pytest.raises(NotServed, match=r"^it draws, and does not look$"):
        await preparer.describe()


async def test_a_process_that_cannot_start_is_a_reason(model: Path) -> None:
    preparer = Preparer(model, command=("false",), max_pixels=1, trust_remote_code=False)
    with contextlib.closing(preparer), pytest.raises(NotServed, match="ended with status 1"):
        await preparer.describe()


async def test_an_image_is_prepared(preparer: Preparer, tmp_path: Path, model: Path) -> None:
    out = str(tmp_path / "out")
    answer = await preparer.prepare(encoded(tmp_path, "size 4 6"), "low", out)
    assert answer.arrays == [PixelArray("pixel_values", "uint8", [6, 4], 0)]
    prepared = answer.prepared
    assert (prepared.text, prepared.n_tokens) == ("<image><image>", 2)
    assert (prepared.width, prepared.height, len(prepared.digest)) == (4, 6, 16)
    assert [entry.stat().st_size for entry in os.scandir(tmp_path) if entry.name == "out"] == [24]
    assert asked(model) == [{"data": "size 4 6", "detail": "low"}]
    assert sorted(os.listdir(tmp_path)) == ["model", "out"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("no pixels", "invalid image: pixels"),
        ("size 40 60", "invalid image: it has 2400 pixels, and at most 100 are allowed"),
        ("hello", "invalid image: it is no image. Allowed: words of this mock"),
        ("die 3", "invalid image: it cannot be prepared"),
    ],
)
async def test_a_refusal_is_the_processs_and_the_next_is_served(
    preparer: Preparer, tmp_path: Path, text: str, words: str
) -> None:
    with pytest.raises(Refused) as refused:
        await preparer.prepare(encoded(tmp_path, text), "auto", str(tmp_path / "out"))
    assert str(refused.value) == words
    await preparer.prepare(encoded(tmp_path, "size 1 1"), "auto", str(tmp_path / "out"))


async def test_what_takes_too_long_is_ended(model: Path, tmp_path: Path) -> None:
    with (
        contextlib.closing(made(model, patience=0.3)) as preparer,
        pytest.raises(Refused, match="too much time or memory"),
    ):
        await preparer.prepare(encoded(tmp_path, "sleep 60 size 1 1"), "auto", "out")


async def test_who_gives_up_leaves_no_file_behind(
    preparer: Preparer, tmp_path: Path, model: Path
) -> None:
    out = str(tmp_path / "out")
    task = asyncio.create_task(
        preparer.prepare(encoded(tmp_path, "sleep 0.5 size 4 6"), "auto", out)
    )
    async with asyncio.timeout(20):
        while not asked(model):  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    waiting = asyncio.create_task(preparer.prepare(encoded(tmp_path, "size 1 1"), "auto", out))
    await asyncio.sleep(0)
    for one in (task, waiting):
        one.cancel()
    await asyncio.wait({task, waiting})
    last = str(tmp_path / "last")
    await preparer.prepare(encoded(tmp_path, "size 2 2"), "auto", last)
    del task, waiting
    assert sorted(os.listdir(tmp_path)) == ["last", "model"]
    assert [one["data"] for one in asked(model)] == ["sleep 0.5 size 4 6", "size 2 2"]
