"""Processors of more kinds, with small numbers, which have no code of their own here."""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

from tests.helpers.tiny_processors import (
    HALF,
    LLAMA,
    OF_LLAVA,
    OF_LLAVA_PROCESSORS,
    OF_QWEN,
    QWEN_2,
    SQUARE,
    STEPS,
    save_tokenizer,
)
from tests.helpers.vision_tokens import IMAGE_SIZE, PATCH_SIZE, token_id


class Kind(NamedTuple):
    """A kind of processor, and what is in its files."""

    model_type: str
    processor_class: str
    preprocessor: dict[str, Any]
    placeholder: str = "<image>"
    repeated: str = "<image>"
    processor: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    names: dict[str, str] = {}  # noqa: RUF012
    """Special tokens of images by the names that tokenizer_config.json gives them."""


CROPS = {
    **STEPS,
    **HALF,
    "crop_to_patches": False,
    "image_processor_type": "GotOcr2ImageProcessor",
    "max_patches": 4,
    "min_patches": 1,
    "resample": 3,
    "size": SQUARE,
}
PIXTRAL = {
    **STEPS,
    **HALF,
    "image_processor_type": "PixtralImageProcessor",
    "patch_size": PATCH_SIZE,
    "resample": 3,
    "size": {"longest_edge": 3 * IMAGE_SIZE},
}
GLM = {
    **STEPS,
    **HALF,
    "merge_size": 2,
    "patch_size": PATCH_SIZE,
    "size": {"longest_edge": 40 * 14**2 * 2, "shortest_edge": 2 * 14**2 * 2},
    "temporal_patch_size": 2,
}
INTERN = {
    "context_image_token": "<image>",
    "end_image_token": "<end_of_image>",
    "start_image_token": "<start_of_image>",
    "video_token": "<|video_pad|>",
}
KINDS = {
    "aria": Kind(
        "aria",
        "AriaProcessor",
        {
            **HALF,
            "image_processor_type": "AriaImageProcessor",
            "max_image_size": 980,
            "min_image_size": 336,
            "split_resolutions": [[490, 980], [980, 490]],
        },
        processor={"size_conversion": {"490": 3, "980": 5}},
        names={"image_token": "<image>"},
    ),
    "aya_vision": Kind(
        "aya_vision",
        "AyaVisionProcessor",
        CROPS,
        repeated="<image_soft_token>",
        processor={
            "downsample_factor": 2,
            "end_of_img_token": "<end_of_image>",
            "image_token": "<image>",
            "img_line_break_token": "<row_1_col_1>",
            "img_patch_token": "<image_soft_token>",
            "img_size": IMAGE_SIZE,
            "patch_size": PATCH_SIZE,
            "start_of_img_token": "<start_of_image>",
            "tile_global_token": "<global-img>",
            "tile_token": "<row_2_col_1>",
        },
    ),
    "deepseek_vl": Kind(
        "deepseek_vl",
        "DeepseekVLProcessor",
        {**STEPS, **HALF, "image_processor_type": "DeepseekVLImageProcessor", "size": SQUARE},
        processor={"num_image_tokens": 16},
        names={"image_token": "<image>"},
    ),
    "exaone4_5": Kind(
        "exaone4_5", "Exaone4_5_Processor", OF_QWEN, "<|image_pad|>", "<|image_pad|>"
    ),
    "glm4v": Kind(
        "glm4v",
        "Glm4vProcessor",
        {**GLM, "image_processor_type": "Glm4vImageProcessor"},
        *("<|image|>", "<|image|>"),
    ),
    "glm46v": Kind(
        "glm46v",
        "Glm46VProcessor",
        {**GLM, "image_processor_type": "Glm46VImageProcessor"},
        *("<|image|>", "<|image|>"),
    ),
    "glm4v_moe": Kind(
        "glm4v_moe",
        "Glm4vProcessor",
        {**GLM, "image_processor_type": "Glm4vImageProcessor"},
        *("<|image|>", "<|image|>"),
    ),
    "glm_ocr": Kind(
        "glm_ocr",
        "Glm46VProcessor",
        {**GLM, "image_processor_type": "Glm46VImageProcessor"},
        *("<|image|>", "<|image|>"),
    ),
    "hyperclovax_vision_v2": Kind(
        "hyperclovax_vision_v2",
        "HyperCLOVAXVisionV2Processor",
        OF_QWEN,
        *("<|image_pad|>", "<|image_pad|>"),
    ),
    "internvl": Kind(
        "internvl", "InternVLProcessor", CROPS, processor={"image_seq_length": 4}, names=INTERN
    ),
    "lighton_ocr": Kind(
        "lighton_ocr",
        "LightOnOcrProcessor",
        PIXTRAL,
        processor={"patch_size": PATCH_SIZE, "spatial_merge_size": 2},
        names={
            "image_break_token": "<start_of_image>",
            "image_end_token": "<end_of_image>",
            "image_token": "<image>",
        },
    ),
    "llava_next_video": Kind(
        "llava_next_video",
        "LlavaNextVideoProcessor",
        {
            **OF_LLAVA,
            "image_grid_pinpoints": [[28, 56], [56, 28], [56, 56]],
            "image_processor_type": "LlavaNextImageProcessor",
        },
        processor=OF_LLAVA_PROCESSORS,
    ),
    "paddleocr_vl": Kind(
        "paddleocr_vl",
        "PaddleOCRVLProcessor",
        {**OF_QWEN, "image_processor_type": "PaddleOCRVLImageProcessor"},
        names={"image_token": "<image>"},
    ),
    "qianfan_ocr": Kind(
        "qianfan_ocr", "QianfanOCRProcessor", CROPS, processor={"image_seq_length": 4}, names=INTERN
    ),
    "video_llama_3": Kind(
        "video_llama_3",
        "VideoLlama3Processor",
        {**OF_QWEN, "image_processor_type": "VideoLlama3ImageProcessor", "merge_size": 1},
        *("<|image_pad|>", "<|image_pad|>"),
    ),
    "vipllava": Kind(
        "vipllava",
        "LlavaProcessor",
        {**OF_LLAVA, "image_processor_type": "CLIPImageProcessor"},
        processor=OF_LLAVA_PROCESSORS,
    ),
}


def save_more(name: str, folder: Path) -> Kind:
    """Write the files of a kind's processor, and a config.json, into `folder`."""
    kind = KINDS[name]
    qwen = kind.placeholder != "<image>"
    save_tokenizer(
        folder,
        {**(QWEN_2 if qwen else LLAMA), **kind.names, "processor_class": kind.processor_class},
    )
    contents = {
        "config": {"model_type": kind.model_type, "image_token_id": token_id(kind.repeated)},
        "preprocessor_config": kind.preprocessor,
        "processor_config": {**kind.processor, "processor_class": kind.processor_class},
    }
    for file, content in contents.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return kind


def load_more(kind: Kind, folder: Path) -> Any:
    """Return transformers' processor of these files, without what it needs for videos alone."""
    from transformers import AutoImageProcessor, AutoTokenizer

    of = {"LlavaProcessor": "llava", "Glm4vProcessor": "glm4v", "Glm46VProcessor": "glm46v"}
    module = of.get(kind.processor_class, kind.model_type)
    code = import_module(f"transformers.models.{module}.processing_{module}")
    its_class = getattr(code, kind.processor_class)
    for_images = type(
        its_class.__name__,
        (its_class,),
        {"check_argument_for_proper_class": lambda self, name, value: type(value)},
    )
    given = {
        "image_processor": AutoImageProcessor.from_pretrained(folder, backend="pil"),
        "tokenizer": AutoTokenizer.from_pretrained(folder),
        "video_processor": SimpleNamespace(),
    }
    joined = {name: given[name] for name in its_class.get_attributes()}
    return for_images(**joined, **kind.processor)
