"""The families of models whose images are read here."""

from __future__ import annotations

from collections.abc import Callable

from workers.images import families
from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.processors import OfProcessor
from workers.images.reader import Reader

READERS: dict[str, Callable[[ModelFiles], Reader]] = {
    "aria": OfProcessor,
    "aya_vision": OfProcessor,
    "deepseek_vl": OfProcessor,
    "exaone4_5": OfProcessor,
    "gemma3": families.Gemma3,
    "glm46v": OfProcessor,
    "glm4v": OfProcessor,
    "glm4v_moe": OfProcessor,
    "glm_ocr": OfProcessor,
    "hyperclovax_vision_v2": OfProcessor,
    "idefics": families.Idefics,
    "idefics2": families.Idefics2,
    "idefics3": families.Idefics3,
    "internvl": OfProcessor,
    "lighton_ocr": OfProcessor,
    "llava": families.Llava,
    "llava_next": families.LlavaNext,
    "llava_next_video": families.LlavaNext,
    "mistral3": families.Pixtral,
    "mllama": families.Mllama,
    "paddleocr_vl": OfProcessor,
    "paligemma": families.PaliGemma,
    "qianfan_ocr": OfProcessor,
    "qwen2_5_vl": families.Qwen2VL,
    "qwen2_vl": families.Qwen2VL,
    "qwen3_vl": families.Qwen2VL,
    "qwen3_vl_moe": families.Qwen2VL,
    "smolvlm": families.Idefics3,
    "video_llama_3": OfProcessor,
    "vipllava": families.Llava,
}
"""By the model's type."""


def reader(files: ModelFiles) -> Reader:
    """Return what reads images for a model. Raises UnsupportedImages."""
    make = READERS.get(files.kind)
    if files.processor_class == "PixtralProcessor":  # under the name of LLaVA
        make = families.Pixtral
    if make is None:
        raise UnsupportedImages(
            f"models of type {files.kind or '(none)'} get no images here, only those of type "
            f"{', '.join(sorted(READERS))}"
        )
    return make(files)
