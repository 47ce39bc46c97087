"""Pixels as numbers, against transformers' functions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import CLIPImageProcessorPil
from transformers.image_transforms import normalize as their_normalize
from transformers.image_transforms import rescale as their_rescale

from workers.images.arithmetic import normalize, replace_arithmetic, rescale

MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


@pytest.mark.parametrize("scale", [1 / 255, 0.00392156862745098, 1 / 127.5])
@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_all_bytes_become_the_same_bits(scale: float, last: bool) -> None:
    pixels = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    pixels = np.moveaxis(pixels, -1, 0) if last else pixels.transpose(2, 0, 1).copy()
    scaled = rescale(pixels, scale)
    expected = their_rescale(pixels, scale)
    assert np.array_equal(scaled.view(np.uint32), expected.view(np.uint32))
    normal = normalize(scaled, MEAN, STD)
    expected = np.ascontiguousarray(
        their_normalize(expected, MEAN, STD, input_data_format="channels_first")
    )
    assert np.array_equal(normal.view(np.uint32), expected.view(np.uint32))
    assert normal.flags.c_contiguous


@pytest.mark.parametrize(
    "settings",
    [{}, {"do_rescale": False}, {"do_normalize": False}, {"image_mean": 0.5, "image_std": 0.25}],
    ids=str,
)
def test_a_processor_with_any_settings_gives_the_same(settings: dict[str, Any]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    processor = CLIPImageProcessorPil(**settings)
    expected = processor(images=image, return_tensors="np")["pixel_values"]
    replace_arithmetic(processor)
    found = processor(images=image, return_tensors="np")["pixel_values"]
    assert found.dtype == expected.dtype
    assert np.array_equal(found, expected)
