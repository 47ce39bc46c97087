from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.models.idefics.processing_idefics import (
    image_attention_mask_for_packed_input_ids,
    incremental_to_binary_attention_mask,
)

from tests.families.cross_rows import EOS, TOKENS, arrays_of, row_of
from tests.helpers.loading import load
from tests.helpers.tiny_vision_cross import save_vision
from tests.helpers.vision_tokens import VOCABULARY
from workers.errors import UnsupportedModel
from workers.layers.linear import Linear
from workers.models.tp_plans import plan_of
from workers.models.transformers_path import TransformersModel
from workers.vision.cross_idefics import IdeficsVision

KIND = "idefics"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TransformersModel:
    folder: Path = save_vision(KIND, tmp_path_factory.mktemp(KIND))
    loaded = load(folder, torch.float32, torch.device("cpu"))
    assert isinstance(loaded, TransformersModel)
    return loaded


def vision_of(model: TransformersModel) -> IdeficsVision:
    assert isinstance(model.vision, IdeficsVision)
    return model.vision


@pytest.mark.parametrize(
    "text", ["*", "a*b", "**a", "a*b*c", "a*b$c", "a*b$c*d", "$a*b", "*$", "a*$*b$c$d", "*a$$*"]
)
def test_what_tokens_see_is_what_its_processor_masks(model: TransformersModel, text: str) -> None:
    row = row_of(KIND, text, [])
    n_images = text.count("*")
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda _: TOKENS[KIND], eos_token_id=EOS)
    last, _ = image_attention_mask_for_packed_input_ids(torch.tensor([row.prompt]), tokenizer, "pt")
    mask = incremental_to_binary_attention_mask(last, "pt", num_classes=n_images)[0].numpy()
    found = np.zeros_like(mask)
    places = vision_of(model).seen(np.array(row.prompt), row.wire)
    for at, (start, end) in enumerate(places):
        found[start:end, at] = 1
    assert (found == mask).all()


def test_additional_tokens_have_logits_like_others(model: TransformersModel) -> None:
    assert model.spec.vocab_size == VOCABULARY


def test_an_encoding_has_keys_and_values_of_every_gated_layer(model: TransformersModel) -> None:
    encoding = vision_of(model).encode(arrays_of(KIND, 1))
    assert encoding.shape == (2, 2, 4, 4, 16)  # 4 heads, 4 latents


def test_arrays_that_do_not_fit_are_named(model: TransformersModel) -> None:
    with pytest.raises(ValueError, match=r"pixel_values of an image is \[3, 28, 14\]"):
        vision_of(model).encode({"pixel_values": torch.zeros(3, 28, 14)})


def test_it_is_not_spread_over_ranks(model: TransformersModel) -> None:
    with pytest.raises(UnsupportedModel, match="idefics could be spread over several ranks"):
        plan_of(model.module)


def test_rounding_weights_leaves_the_encoder_as_it_is(tmp_path: Path) -> None:
    rounded = load(save_vision(KIND, tmp_path), torch.float32, torch.device("cpu"), quantize="int8")
    assert isinstance(rounded, TransformersModel)
    module = rounded.module.model
    ours = [
        {type(one) for one in part.modules() if isinstance(one, nn.Linear | Linear)}
        for part in (
            module.vision_model,
            module.perceiver_resampler,
            module.gated_cross_attn_layers,
        )
    ]
    assert ours == [{nn.Linear}, {nn.Linear}, {Linear}]
