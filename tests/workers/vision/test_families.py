"""What families make of an image's arrays, and where its tokens are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import pad
from transformers import AutoModelForImageTextToText

from tests.families.vision_cases import CASES, picture, prompt, words
from tests.helpers import tiny_vision_cross
from tests.helpers.loading import load
from tests.helpers.tiny_vision import KINDS, config_of, save_vision
from tests.helpers.vision_tokens import token_id
from workers.vision.families import FAMILIES, Grids, text_prefix, vision_of

CPU = torch.device("cpu")


def built(kind: str) -> Any:
    return AutoModelForImageTextToText.from_config(config_of(kind), dtype=torch.float32).eval()


def arrays_of(kind: str, size: int = 0, seed: int = 1) -> dict[str, torch.Tensor]:
    made = picture(CASES[kind], lambda _: 4, seed, size).arrays
    return {name: torch.from_numpy(one) for name, one in made.items()}


def grid(height: int, width: int) -> Mapping[str, torch.Tensor]:
    return {"image_grid_thw": torch.tensor([[1, height, width]])}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_vision("llava", tmp_path_factory.mktemp("llava"))


def test_every_family_has_a_small_model() -> None:
    small = *KINDS, *tiny_vision_cross.KINDS
    assert {kind.partition(",")[0] for kind in small} >= FAMILIES.keys()


def test_a_model_of_text_has_no_vision() -> None:
    text = config_of("llava").text_config
    model = AutoModelForImageTextToText.from_config(config_of("llava")).model.language_model
    assert model.config.model_type == text.model_type == "llama"
    assert vision_of(model) is None
    assert text_prefix(model) == ""


@pytest.mark.parametrize("kind", ["qwen2_vl", "qwen2_5_vl", "glm4v"])
def test_positions_are_those_of_transformers(kind: str) -> None:
    model = built(kind)
    image = [token_id("<|image_pad|>")]
    grids = [(4, 8), (10, 4), (2, 2), (6, 6)]
    n = [height * width // 4 for height, width in grids]
    tokens = [*image * n[0], 5, 6, *image * n[1], 7, *image * n[2], *words(1, 9), *image * n[3]]
    for ids in (tokens, [*tokens, *words(2, 5)]):
        given = torch.tensor([ids])
        expected, delta = model.model.get_rope_index(
            given,
            mm_token_type_ids=(given == image[0]).int(),
            image_grid_thw=torch.tensor([[1, *one] for one in grids]),
        )
        found = Grids(model).positions(np.array(ids), [grid(*one) for one in grids])
        assert found.tolist() == expected[:, 0].tolist()
        assert found.max() + 1 == len(ids) + int(delta)


def test_images_side_by_side_are_told_apart() -> None:
    image = token_id("<|image_pad|>")
    found = Grids(built("qwen2_vl")).positions(np.array([image] * 4), [grid(2, 4), grid(4, 2)])
    assert found.tolist() == [[0, 0, 2, 2], [0, 0, 2, 3], [0, 1, 2, 2]]


def test_positions_of_text_are_equal_on_all_axes() -> None:
    vision = Grids(built("qwen2_vl"))
    assert vision.positions(np.arange(5), []).tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("n", [3, 5])
def test_an_image_without_its_placeholders_is_refused(n: int) -> None:
    vision = Grids(built("qwen2_vl"))
    tokens = np.array([1, *[token_id("<|image_pad|>")] * n, 2])
    images = [grid(4, 4)] * (1 + n // 4)
    with pytest.raises(ValueError, match="1x2x2 places does not have as many placeholders"):
        vision.positions(tokens, images)


def test_rows_have_the_dtype_of_the_model(llava: Path) -> None:
    model = load(llava, torch.bfloat16, CPU)
    assert model.vision is not None
    rows = model.vision.encode(arrays_of("llava"))
    assert rows.shape == (16, 64)
    assert rows.dtype == torch.bfloat16


@pytest.mark.parametrize("implementation", ["fused", "transformers"])
def test_weights_of_the_encoder_are_counted(llava: Path, implementation: str) -> None:
    stored = load_file(llava / "model.safetensors")
    beside = sum(one.nbytes for name, one in stored.items() if "language_model" not in name)
    whole = sum(one.nbytes for one in stored.values())
    assert beside > whole / 10
    model = load(llava, torch.float32, CPU, implementation)
    assert model.weight_bytes == pytest.approx(whole, rel=0.02)


def test_an_array_that_is_missing_is_named(llava: Path) -> None:
    vision = load(llava, torch.float32, CPU).vision
    assert vision is not None
    with pytest.raises(ValueError, match="of llava needs the arrays pixel_values, and was given x"):
        vision.encode({"x": torch.zeros(1)})


def test_arrays_that_no_family_asks_for_are_left_out(llava: Path) -> None:
    vision = load(llava, torch.float32, CPU).vision
    assert vision is not None
    given = arrays_of("llava")
    more = given | {"original_sizes": torch.tensor([[28, 28]])}
    assert torch.equal(vision.encode(given), vision.encode(more))


@pytest.mark.parametrize(
    ("kind", "name", "array"),
    [
        ("llava", "pixel_values", torch.zeros(1, 3, 27, 31)),
        ("llava", "pixel_values", torch.zeros(1, 1, 28, 28)),
        ("llava", "pixel_values", torch.zeros(7)),
        ("llava_next", "image_sizes", torch.tensor([[0, 0]])),
        ("llava_next", "pixel_values", torch.zeros(1, 2, 3, 28, 28)),
        ("idefics3", "pixel_attention_mask", torch.ones(1, 1, 5, 5, dtype=torch.int64)),
        ("qwen2_vl", "image_grid_thw", torch.tensor([[1, 3, 5]])),
        ("qwen2_vl", "pixel_values", torch.zeros(3, 294)),
        ("gemma3", "pixel_values", torch.zeros(1, 3, 14, 14)),
    ],
)
def test_arrays_that_do_not_fit_are_refused_by_their_shapes(
    kind: str, name: str, array: torch.Tensor
) -> None:
    vision = vision_of(built(kind))
    assert vision is not None
    shapes = rf"do not fit {kind}: .*{name} \[{', '.join(map(str, array.shape))}\]"
    with pytest.raises(ValueError, match=shapes):
        vision.encode(arrays_of(kind) | {name: array})


def test_a_lack_of_memory_is_not_the_images_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    model = built("llava")
    vision = vision_of(model)
    assert vision is not None

    def forward(*args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError("no memory")

    monkeypatch.setattr(model.model.vision_tower, "forward", forward)
    with pytest.raises(torch.OutOfMemoryError):
        vision.encode(arrays_of("llava"))


def test_images_are_encoded_alike_alone_and_beside_others() -> None:
    """Padding that transformers adds to smaller images of a batch changes nothing."""
    model = built("idefics2")
    vision = vision_of(model)
    assert vision is not None
    one, other = arrays_of("idefics2", 0), arrays_of("idefics2", 2, seed=2)
    padded = {
        name: torch.cat(
            [
                pad(x[name], (0, 56 - x[name].shape[-1], 0, 56 - x[name].shape[-2]))
                for x in (one, other)
            ],
            dim=1,
        )
        for name in one
    }
    rows = torch.cat([vision.encode(one), vision.encode(other)])
    torch.testing.assert_close(vision.encode(padded), rows, atol=1e-5, rtol=1e-5)


def test_the_prompt_of_a_case_has_its_images_in_place() -> None:
    made = picture(CASES["llava"], lambda _: 4, 1, 0)
    given = prompt([5, 6], made, [7])
    assert given.tokens == [5, 6, *made.tokens, 7]
    assert given.pictures[0][0] == 2
