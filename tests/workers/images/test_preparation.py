"""Answers of the process that prepares images, without the process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers.tiny_processors import save_processor
from tests.workers.images.encoded import encode, gradient
from workers.images import preparation
from workers.images.preparation import Preparation


@pytest.fixture
def prepared(tmp_path: Path) -> Preparation:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    save_processor("llava", tmp_path)
    (tmp_path / "image").write_bytes(encode(gradient(), "PNG"))
    return Preparation(tmp_path, max_pixels=1000)


def ask(prepared: Preparation, out: str) -> dict[str, Any]:
    file = str(prepared.folder / "image")
    return prepared.answer({"file": file, "detail": "auto", "out": out})


def test_a_model_without_images_says_so(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    answer = Preparation(tmp_path, 1000).answer({"describe": True})
    assert "type llama get no images here" in answer["error"]


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (MemoryError("0x7f"), "the image takes more memory than is allowed: send a smaller one"),
        (KeyError("0x7f"), "the image cannot be prepared for this model: send another one"),
    ],
)
def test_what_goes_wrong_within_is_not_told(
    prepared: Preparation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: Exception,
    said: str,
) -> None:
    def fails(*_: Any) -> None:
        raise raised

    monkeypatch.setattr(preparation, "decode", fails)
    assert ask(prepared, str(prepared.folder / "out")) == {"error": said}
    assert ("0x7f" in capsys.readouterr().err) == isinstance(raised, KeyError)


def test_no_room_for_arrays_is_said(prepared: Preparation) -> None:
    assert ask(prepared, "/dev/full") == {
        "error": "the server has no room for the image: try again later"
    }
