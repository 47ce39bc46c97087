from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from tests.families.cross_rows import TILES, TOKENS, Rows, arrays_of, row_of
from tests.helpers.loading import load
from tests.helpers.tiny_vision_cross import save_vision
from workers.errors import UnsupportedModel
from workers.models.tp_plans import plan_of
from workers.models.transformers_path import TransformersModel
from workers.vision.cross_mllama import MllamaVision

KIND = "mllama"
PATCHES = 17
"""Of a tile, and its class token."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    folder: Path = save_vision(KIND, tmp_path_factory.mktemp(KIND))
    loaded = load(folder, torch.float32, torch.device("cpu"))
    assert isinstance(loaded, TransformersModel)
    return loaded


def vision_of(model: TransformersModel) -> MllamaVision:
    assert isinstance(model.vision, MllamaVision)
    return model.vision


@pytest.mark.parametrize(
    "text", ["*", "*a", "a*", "a*b", "**a", "a**b*c", "*a**", "a*b*c***d", "a**"]
)
def test_what_tokens_see_is_what_its_processor_masks(model: TransformersModel, text: str) -> None:
    row = row_of(KIND, text, [])
    n, n_images = len(text), text.count("*")
    mask = convert_sparse_cross_attention_mask_to_dense(
        [get_cross_attention_token_mask(row.prompt, TOKENS[KIND])], [[1] * n_images], 1, n
    )[0, ..., 0]
    found = np.zeros((n, n_images), np.int64)
    places = vision_of(model).seen(np.array(row.prompt), row.wire)
    for at, (start, end) in enumerate(places):
        found[start:end, at] = 1
    assert (found == mask).all()
    # What is generated sees what the last token of the prompt sees.
    assert [end is None for _, end in places] == mask[-1].astype(bool).tolist()


def test_layers_of_text_alone_are_in_the_paged_cache(model: TransformersModel) -> None:
    assert len(model.spec.layers) == 3
    layers = model.module.model.language_model.layers
    assert [layers[at].self_attn.layer_idx for at in (0, 2, 4)] == [0, 1, 2]


def test_an_encoding_has_keys_and_values_of_every_tile_and_layer(model: TransformersModel) -> None:
    vision = vision_of(model)
    encoding = vision.encode(arrays_of(KIND, 1, n_tiles=2))
    assert encoding.shape == (2, 2, 2, TILES * PATCHES, 16)
    assert vision.visible(encoding, ahead=True) is encoding
    assert vision.visible(encoding, ahead=False).shape[3] == 2 * PATCHES


def test_nothing_is_kept_of_an_encoding_that_is_dropped(model: TransformersModel) -> None:
    vision = vision_of(model)
    encoding = vision.encode(arrays_of(KIND, 1))
    assert len(vision._filled) == 1
    del encoding
    gc.collect()
    assert len(vision._filled) == 0


def test_keys_and_values_are_computed_once_an_image(model: TransformersModel) -> None:
    layers = model.module.model.language_model.layers
    calls: list[int] = []
    hooks = [
        getattr(layers[at].cross_attn, name).register_forward_hook(
            lambda *_, at=at: calls.append(at)
        )
        for at in (1, 3)
        for name in ("k_proj", "v_proj")
    ]
    image = arrays_of(KIND, 1)
    try:
        rows = Rows(model, [row_of(KIND, f"{text}*b", [image]) for text in "xy"], chunk=2)
        rows.run([0, 1], 4)
    finally:
        for hook in hooks:
            hook.remove()
    assert calls == [1, 1, 3, 3]


def test_arrays_that_do_not_fit_are_named(model: TransformersModel) -> None:
    arrays = dict(arrays_of(KIND, 1))
    arrays |= {"pixel_values": arrays["pixel_values"][:, :, :2]}
    with pytest.raises(ValueError, match=r"pixel_values of an image is \[1, 1, 2, 3, 28, 28\]"):
        vision_of(model).encode(arrays)
    del arrays["pixel_values"]
    with pytest.raises(ValueError, match="needs the array pixel_values, and was given aspect_"):
        vision_of(model).encode(arrays)


def test_it_is_not_spread_over_ranks(model: TransformersModel) -> None:
    with pytest.raises(
        UnsupportedModel, match="mllama_text_model could be spread over several ranks"
    ):
        plan_of(model.module)
