"""Images and prompts of each family, against transformers' own processors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.helpers.tiny_processors import KINDS, load_processor, save_processor
from tests.helpers.vision_tokens import token_id
from tgi_async.images.expansion import expand
from tgi_async.text.tokenizer import Tokenizer
from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.reader import Detail, Read, Reader
from workers.images.readers import reader

SIZES = ((64, 48), (40, 90), (17, 16))
PROMPTS = ("{}What is it?", "What is\n it? {} Say", "First {}{} and {}then?")
"""With one image, an image behind text, and three, of which two are neighbours."""
IN_ROWS = ("idefics", "idefics2", "idefics3", "smolvlm", "mllama")
"""Kinds whose arrays have a row for each prompt, with its images in it."""
LOW: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    **dict.fromkeys(("idefics2", "idefics3", "smolvlm"), ({}, {"do_image_splitting": False})),
    **dict.fromkeys(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        ({"max_pixels": 1000 * 14 * 14}, {"max_pixels": 256 * 14 * 14}),
    ),
    "gemma3": (
        {"do_pan_and_scan": True, "pan_and_scan_min_crop_size": 16},
        {"do_pan_and_scan": False},
    ),
}
"""What checkpoints say, and what else they would have to say for low detail."""


def save(kind: str, folder: Path, **changed: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    return save_processor(kind, folder, **changed)


def noise(width: int, height: int) -> Image.Image:
    values = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def theirs(
    kind: str, processor: Any, pieces: list[str], images: list[Image.Image], **options: Any
) -> Any:
    """Return what transformers' processor makes of a prompt, given the texts around its images."""
    if kind == "idefics":
        items = [item for pair in zip(pieces, [*images, ""], strict=True) for item in pair]
        return processor(text=[item for item in items if item != ""], return_tensors="pt")
    if kind == "paligemma":  # it puts images first where the text has no places for them
        return processor(images=[images], text=["".join(pieces)], return_tensors="pt")
    placeholder = {
        "gemma3": "<start_of_image>",
        "mllama": "<|image|>",
        "qwen2_vl": "<|vision_start|><|image_pad|><|vision_end|>",
        "qwen2_5_vl": "<|vision_start|><|image_pad|><|vision_end|>",
        "qwen3_vl": "<|vision_start|><|image_pad|><|vision_end|>",
    }.get(kind, "<image>")
    text = placeholder.join(pieces)
    return processor(images=images, text=text, return_tensors="pt", **options)


def assert_equal(kind: str, ours: list[Read], whole: Any) -> None:
    """Assert that each image's arrays are transformers', less the padding to the other images."""
    starts = dict.fromkeys(ours[0].arrays, 0)
    for read in ours:
        for name, array in read.arrays.items():
            batch = whole[name].numpy()
            if kind in IN_ROWS:
                (array,), (batch,) = array, batch
            rows = batch[starts[name] :][tuple(map(slice, array.shape))]
            assert np.array_equal(array, rows), name
            starts[name] += len(array)
    for name, end in starts.items():
        assert end == len(whole[name][0] if kind in IN_ROWS else whole[name]), name


def compare(ours: Reader, processor: Any, prompt: str, detail: Detail, **options: Any) -> None:
    family = ours.family()
    pieces = prompt.split("{}")
    images = [noise(*size) for size in SIZES[: len(pieces) - 1]]
    read = [ours.read(image, detail) for image in images]
    whole = theirs(family.kind, processor, pieces, images, **options)
    if family.kind == "mllama":  # it keeps them for itself, to make a mask of them
        whole["num_tiles"] = whole["cross_attention_mask"].amax(1).sum(-1)
    text = expand(family, family.placeholder.join(pieces), [image.text for image in read])
    tokenizer = Tokenizer.from_folder(ours.files.folder)
    ids = tokenizer.encode(text, add_special_tokens=family.adds_special_tokens)
    assert ids == whole["input_ids"][0].tolist()
    assert_equal(family.kind, read, whole)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("kind", KINDS)
def test_prompts_and_arrays_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    ours = reader(ModelFiles(save(kind, tmp_path)))
    processor = load_processor(kind, tmp_path)
    for prompt in PROMPTS:
        compare(ours, processor, prompt, "auto")


@pytest.mark.parametrize("detail", ["high", "low"])
@pytest.mark.parametrize("kind", LOW)
def test_low_detail_is_as_other_settings_and_high_as_the_checkpoints(
    kind: str, detail: Detail, tmp_path: Path
) -> None:
    settings, low = LOW[kind]
    ours = reader(ModelFiles(save(kind, tmp_path / "ours", **settings)))
    given = {**settings, **(low if detail == "low" else {})}
    processor = load_processor(kind, save(kind, tmp_path / "theirs", **given))
    # Its processor's own settings hide those of the checkpoint.
    options = {"images_kwargs": given} if kind == "gemma3" else {}
    for prompt in PROMPTS:
        compare(ours, processor, prompt, detail, **options)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (200, 1), (1, 200), (3, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_the_smallest_and_longest_images_become_as_many_tokens_as_rows(
    kind: str, size: tuple[int, int], tmp_path: Path
) -> None:
    ours = reader(ModelFiles(save(kind, tmp_path)))
    read = ours.read(Image.new("RGB", size, "red"), "auto")
    assert ours.image_token in read.text
    for name, array in read.arrays.items():
        assert array.size, name
        assert np.isfinite(array).all(), name


@pytest.mark.parametrize("kind", KINDS)
def test_a_family_knows_its_tokens(kind: str, tmp_path: Path) -> None:
    family = reader(ModelFiles(save(kind, tmp_path))).family()
    assert family.kind == kind
    assert family.image_token_id == token_id(family.image_token)
    assert family.image_token in family.reserved
    assert any(token in family.placeholder for token in family.reserved)
    read = reader(ModelFiles(tmp_path)).read(noise(64, 48), "auto")
    left = read.text
    for token in family.reserved:
        left = left.replace(token, "")
    assert not left.strip()


def test_a_text_model_has_no_images(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedImages, match=r"type llama get no images here, only .* llava"):
        reader(ModelFiles(tmp_path))


def test_a_model_without_an_image_processor_is_refused(tmp_path: Path) -> None:
    save("llava", tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_processor_type": "Other"}')
    with pytest.raises(UnsupportedImages, match="no image processor for it that works without"):
        reader(ModelFiles(tmp_path))
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(UnsupportedImages, match=r"it has no preprocessor_config\.json, and no"):
        reader(ModelFiles(tmp_path))


def test_a_config_and_a_tokenizer_that_disagree_are_refused(tmp_path: Path) -> None:
    save("llava", tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llava", "image_token_index": 3}')
    with pytest.raises(UnsupportedImages, match="<image> is 260 in its tokenizer and 3 in its"):
        reader(ModelFiles(tmp_path)).family()


def test_settings_of_llava_come_from_the_config_where_no_processor_has_them(
    tmp_path: Path,
) -> None:
    save("llava", tmp_path)
    with_processor = reader(ModelFiles(tmp_path)).read(noise(64, 48), "auto")
    (tmp_path / "processor_config.json").unlink()
    config = {
        "model_type": "llava",
        "vision_config": {"model_type": "clip_vision_model", "patch_size": 7},
        "vision_feature_select_strategy": "default",
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert reader(ModelFiles(tmp_path)).read(noise(64, 48), "auto").text == with_processor.text


def test_a_number_of_tokens_comes_from_paligemmas_config_where_no_processor_has_it(
    tmp_path: Path,
) -> None:
    save("paligemma", tmp_path, image_seq_length=None)
    with pytest.raises(UnsupportedImages, match=r"neither preprocessor_config\.json says"):
        reader(ModelFiles(tmp_path))
    config = {"model_type": "paligemma", "text_config": {"num_image_tokens": 16}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert reader(ModelFiles(tmp_path)).read(noise(64, 48), "auto").text == "<image>" * 16


@pytest.mark.parametrize("kind", ["mistral3", "llava"])
def test_pixtral_ends_rows_and_images_with_tokens(kind: str, tmp_path: Path) -> None:
    """Transformers' own processor of it cannot be imported without torchvision."""
    settings = {
        "processor_class": "PixtralProcessor",
        "image_token": "<image>",
        "image_break_token": "<start_of_image>",
        "image_end_token": "<end_of_image>",
        "patch_size": 7,
        "spatial_merge_size": 2,
    }
    image_processor = {"image_processor_type": "PixtralImageProcessor", "do_center_crop": False}
    save("llava", tmp_path, **image_processor, size={"longest_edge": 84})
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    ours = reader(ModelFiles(tmp_path))
    read = ours.read(noise(100, 40), "auto")  # to 84 x 33.6 pixels, and up to whole patches
    row = "<image>" * 6
    assert read.text == f"{row}<start_of_image>{row}<start_of_image>{row}<end_of_image>"
    assert read.arrays["image_sizes"].tolist() == [[42, 84]]
    assert read.arrays["pixel_values"].shape == (1, 3, 42, 84)
    assert set(ours.family().reserved) == {"<image>", "<start_of_image>", "<end_of_image>"}
