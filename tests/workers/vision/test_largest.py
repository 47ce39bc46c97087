"""The largest image of a model, by its own image processor."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.helpers.loading import load
from tests.helpers.tiny_processors import save_processor
from tests.helpers.tiny_vision import save_vision
from workers.errors import UnsupportedModel
from workers.executor import Executor
from workers.models.loading import Loaded
from workers.vision.families import InPlace
from workers.vision.largest import largest_image

CPU = torch.device("cpu")


def folder_of(kind: str, folder: Path) -> Path:
    save_vision(kind, folder)
    save_processor(kind, folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("llava_next", (1, 5, 3, 28, 28)),
        ("qwen2_vl", (144, 294)),
        pytest.param("idefics3", (1, 17, 3, 28, 28), marks=pytest.mark.full),
        pytest.param("llava", (1, 3, 28, 28), marks=pytest.mark.full),
    ],
)
def test_an_image_is_as_large_as_any(kind: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    found = largest_image(folder_of(kind, tmp_path), 10_000)
    assert found is not None
    assert found["pixel_values"].shape == shape
    vision = load(tmp_path, torch.float32, CPU).vision
    assert vision is not None
    assert vision.encode(found).shape[1] == 64


@pytest.mark.parametrize(("most", "n_patches"), [(36, 144), (35, 132), (24, 72)])
def test_an_image_has_no_more_tokens_than_a_text(most: int, n_patches: int, tmp_path: Path) -> None:
    found = largest_image(folder_of("qwen2_vl", tmp_path), most)
    assert found is not None
    assert len(found["pixel_values"]) == n_patches <= 4 * most


def test_images_that_are_cut_into_parts_where_they_are_long(tmp_path: Path) -> None:
    path = folder_of("gemma3", tmp_path) / "preprocessor_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"do_pan_and_scan": True}))
    found = largest_image(tmp_path, 10_000)
    assert found is not None
    assert len(found["pixel_values"]) == 5


def test_images_that_fit_no_text_are_left_out(tmp_path: Path) -> None:
    assert largest_image(folder_of("llava", tmp_path), 15) is None
    assert largest_image(tmp_path, 16) is not None


def test_a_model_that_gets_no_images_has_none(tmp_path: Path) -> None:
    assert largest_image(save_vision("llava", tmp_path), 100) is None


def executor(model: Loaded, image: dict[str, torch.Tensor]) -> Executor:
    return Executor(model, CPU, 2, 32, 16, 4, largest_image=image)


def test_a_model_warms_up_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(save_vision("llava", tmp_path), torch.float32, CPU)
    given = {"pixel_values": torch.zeros(1, 3, 28, 28)}
    shapes: list[tuple[int, ...]] = []
    encode = InPlace.encode

    def recorded(self: InPlace, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        shapes.append(tuple(arrays["pixel_values"].shape))
        return encode(self, arrays)

    monkeypatch.setattr(InPlace, "encode", recorded)
    executor(model, given).warm_up()
    assert shapes == [(1, 3, 28, 28)]


def test_an_image_that_does_not_fit_is_found_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(save_vision("llava", tmp_path), torch.float32, CPU)
    with pytest.raises(UnsupportedModel, match=r"does not encode images: .* do not fit llava"):
        executor(model, {"pixel_values": torch.zeros(1, 3, 5, 5)}).warm_up()

    def encode(self: InPlace, arrays: dict[str, torch.Tensor]) -> torch.Tensor:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(InPlace, "encode", encode)
    message = r"largest image of the model \(pixel_values \[1, 3, 28, 28\]\) does not fit in"
    with pytest.raises(UnsupportedModel, match=message):
        executor(model, {"pixel_values": torch.zeros(1, 3, 28, 28)}).warm_up()
