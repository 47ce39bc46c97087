"""The families whose images become rows in the place of tokens, by transformers' code."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Image
from workers.forward import Vision
from workers.vision.cross_idefics import IdeficsVision
from workers.vision.cross_mllama import MllamaVision

FATAL = (torch.OutOfMemoryError, torch.AcceleratorError)
"""Errors that are not the image's."""


class InPlace:
    """Images whose encoding is what the model's `get_image_features` makes of them. See
    `forward.Vision`."""

    cross = False
    mrope = False

    def __init__(self, model: Any) -> None:
        """Take a model of transformers with numbers, or without."""
        self.image_token_id: int = model.config.image_token_id
        self._model = model
        self._kind: str = model.config.model_type
        asked = inspect.signature(model.model.get_image_features).parameters.values()
        self._names = {one.name for one in asked if one.kind is not one.VAR_KEYWORD}
        self._needed = {
            one.name for one in asked if one.name in self._names and one.default is one.empty
        } | ({"image_grid_thw"} & self._names)

    @torch.inference_mode()
    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """See `forward.Vision`."""
        missing = sorted(self._needed - arrays.keys())
        if missing:
            raise ValueError(
                f"an image of {self._kind} needs the arrays {', '.join(sorted(self._needed))}, and "
                f"was given {', '.join(sorted(arrays)) or 'none'}"
            )
        given = {name: self._moved(arrays[name]) for name in self._names & arrays.keys()}
        try:
            rows = self._rows(self._model.model.get_image_features(**given, return_dict=True))
        except FATAL:
            raise
        except Exception as error:  # of whatever kind: it is the model's own code that fails
            shapes = ", ".join(f"{name} {list(one.shape)}" for name, one in sorted(given.items()))
            raise ValueError(f"an image's arrays do not fit {self._kind}: {shapes}") from error
        return rows

    def positions(
        self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
    ) -> NDArray[np.int64]:
        """See `forward.Vision`."""
        return np.broadcast_to(np.arange(len(tokens)), (3, len(tokens)))

    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        """See `forward.Vision`: by what stands in their places, as any text is."""
        return [(image.start, None) for image in images]

    def _rows(self, outcome: Any) -> torch.Tensor:
        return _joined(outcome.pooler_output)

    def _moved(self, array: torch.Tensor) -> torch.Tensor:
        dtype = self._model.dtype if array.is_floating_point() else array.dtype
        return array.to(self._model.device, dtype)


def _joined(parts: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the rows of all parts of an image."""
    several = [parts] if isinstance(parts, torch.Tensor) else parts
    return torch.cat([part.flatten(0, -2) for part in several])


class Grids(InPlace):
    """Images whose placeholders are at the places of a grid: time, height and width."""

    mrope = True

    def __init__(self, model: Any) -> None:
        """Take a model of transformers."""
        super().__init__(model)
        self._merged: int = model.config.vision_config.spatial_merge_size

    def positions(
        self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
    ) -> NDArray[np.int64]:
        """See `forward.Vision`. Raises ValueError for an image without its placeholders."""
        found = np.empty((3, len(tokens)), np.int64)
        at, position = 0, 0
        for image in images:
            time, height, width = (int(n) for n in image["image_grid_thw"].flatten())
            sides = time, height // self._merged, width // self._merged
            ahead = np.flatnonzero(tokens[at:] == self.image_token_id)
            start = at + int(ahead[0]) if len(ahead) else len(tokens)
            end = start + int(np.prod(sides))
            if (tokens[start:end] != self.image_token_id).any() or end > len(tokens):
                raise ValueError(
                    f"an image of {sides[0]}x{sides[1]}x{sides[2]} places does not have as many "
                    f"placeholders behind token {at}"
                )
            found[:, at:start] = np.arange(position, position + start - at)
            position += start - at
            found[:, start:end] = position + np.indices(sides).reshape(3, -1)
            position += max(sides)
            at = end
        found[:, at:] = np.arange(position, position + len(tokens) - at)
        return found


class DeepGrids(Grids):
    """The same, with rows that are added to what the first layers make, each layer's beside those
    that stand in the place of embeddings."""

    def _rows(self, outcome: Any) -> torch.Tensor:
        parts = [outcome.pooler_output, *outcome.deepstack_features]
        return torch.cat([_joined(part) for part in parts], dim=1)


FAMILIES: dict[str, Callable[[Any], Vision]] = {
    "aria": InPlace,
    "aya_vision": InPlace,
    "cohere2_vision": InPlace,
    "deepseek_vl": InPlace,
    "exaone4_5": InPlace,
    "gemma3": InPlace,
    "glm46v": Grids,
    "glm4v": Grids,
    "glm4v_moe": Grids,
    "glm_ocr": Grids,
    "got_ocr2": InPlace,
    "hyperclovax_vision_v2": InPlace,
    "idefics": IdeficsVision,
    "idefics2": InPlace,
    "idefics3": InPlace,
    "internvl": InPlace,
    "kimi_k25": InPlace,
    "lighton_ocr": InPlace,
    "llava": InPlace,
    "llava_next": InPlace,
    "llava_next_video": InPlace,
    "llava_onevision": InPlace,
    "mistral3": InPlace,
    "mllama": MllamaVision,
    "paddleocr_vl": Grids,
    "paligemma": InPlace,
    "qianfan_ocr": InPlace,
    "qwen2_5_vl": Grids,
    "qwen2_vl": Grids,
    "qwen3_vl": DeepGrids,
    "qwen3_vl_moe": DeepGrids,
    "smolvlm": InPlace,
    "video_llama_3": InPlace,
    "vipllava": InPlace,
}
"""By `model_type`: what makes a model's `Vision`."""
BIDIRECTIONAL = frozenset({"gemma3", "paligemma"})
"""Families whose prompts have spans that attend in both directions."""
FIRST_POSITIONS = {"paligemma": 1}
"""Of families that count positions from another number than 0."""


def takes_images(config: Any) -> bool:
    """Whether a model of this config is one that takes images, of a family that is served."""
    return config.model_type in FAMILIES


def attend_by_spans(config: Any) -> None:
    """Leave it to the spans of a prompt which of its tokens attend in both directions."""
    if config.model_type == "paligemma":
        config.text_config.use_bidirectional_attention = False


def vision_of(model: Any) -> Vision | None:
    """Return what a model of transformers does with images; None for one that takes none."""
    make = FAMILIES.get(model.config.model_type)
    return None if make is None else make(model)


def text_prefix(model: Any) -> str:
    """Return what the names of all in the decoder begin with, in a model of transformers that takes
    images; "" for one that takes none."""
    if not takes_images(model.config):
        return ""
    decoder = model.get_decoder()
    return next(f"{name}." for name, one in model.named_modules() if one is decoder)


def layer_prefixes(model: Any) -> tuple[str, ...]:
    """Return what the names of the decoder's layers begin with, without those that encode images
    where the decoder has them too; "" for a model that takes no images."""
    prefix = text_prefix(model)
    if model.config.model_type == "idefics":
        return tuple(prefix + name for name in ("layers.", "gated_cross_attn_layers."))
    return (prefix,)
