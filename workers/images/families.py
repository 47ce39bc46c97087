"""How each family of models takes images."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from transformers.image_processing_utils import select_best_resolution

from workers.images.arrays import Arrays
from workers.images.model_files import ModelFiles, UnsupportedImages
from workers.images.reader import Detail, Outcome, Read, Reader

FAKE = "<fake_token_around_image>"
LOW_TOKENS = 256
"""Most tokens of an image of low detail, where its number of pixels decides."""


class Idefics(Reader):
    tokens = (FAKE,)

    def arrays(self, outcome: Outcome) -> Arrays:
        return {"pixel_values": np.ascontiguousarray(outcome)[None]}  # images of one prompt

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        return FAKE + self.image_token + FAKE


class _Masked(Reader):
    """Tiles of several sizes, made equal by padding, which a mask tells from the image."""

    tokens: tuple[str, ...] = (FAKE,)
    inputs = ("pixel_values", "pixel_attention_mask")
    default_length = 64

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.length = int(files.processor.get("image_seq_len") or self.default_length)
        """Tokens of a tile."""

    def options(self, detail: Detail) -> dict[str, Any]:
        return {"do_image_splitting": False} if detail == "low" else {}

    def arrays(self, outcome: Outcome) -> Arrays:
        arrays = dict(super().arrays(outcome))
        arrays["pixel_attention_mask"] = arrays["pixel_attention_mask"].astype(bool)
        return arrays


class Idefics2(_Masked):
    def read(self, image: Image.Image, detail: Detail) -> Read:
        width, height = image.size
        if min(width, height) == 1:  # has no halves to be split into
            image = image.resize((max(width, 2), max(height, 2)))
        return super().read(image, detail)

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        n_tiles: int = outcome["pixel_values"].shape[1]
        return FAKE + (self.image_token * self.length + FAKE) * n_tiles


class Idefics3(_Masked):
    tokens = (
        *(FAKE, "<global-img>"),
        *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
    )
    default_length = 169

    def options(self, detail: Detail) -> dict[str, Any]:
        return {"return_row_col_info": True, **super().options(detail)}

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        (n_rows,), (n_columns,) = outcome["rows"][0], outcome["cols"][0]
        tile = self.image_token * self.length
        whole = f"{FAKE}<global-img>{tile}{FAKE}"
        if not n_rows:
            return whole
        rows = (
            "".join(f"{FAKE}<row_{row}_col_{column}>{tile}" for column in range(1, n_columns + 1))
            for row in range(1, n_rows + 1)
        )
        return "\n".join(rows) + "\n\n" + whole


class Llava(Reader):
    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        vision = files.config.get("vision_config") or {}
        settings = files.processor
        self.patch_size = int(settings.get("patch_size") or vision.get("patch_size") or 14)
        strategy = settings.get("vision_feature_select_strategy") or files.config.get(
            "vision_feature_select_strategy", "default"
        )
        has_class = vision.get("model_type", "clip_vision_model") == "clip_vision_model"
        more = int(settings.get("num_additional_image_tokens", has_class))
        self.more_tokens: int = more - (strategy == "default")
        """Tokens beside those of patches."""

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        height, width = outcome["pixel_values"].shape[-2:]
        n_patches: int = (height // self.patch_size) * (width // self.patch_size)
        return self.image_token * (n_patches + self.more_tokens)


class LlavaNext(Llava):
    inputs = ("pixel_values", "image_sizes")

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        height, width = outcome["pixel_values"].shape[-2:]
        rows, columns = height // self.patch_size, width // self.patch_size
        canvas = select_best_resolution(size[::-1], self.processor.image_grid_pinpoints)
        fine = _unpadded(size, rows * (canvas[0] // height), columns * (canvas[1] // width))
        n_fine = fine[0] * (fine[1] + 1)  # each row ends with a token of its own
        n_tokens: int = rows * columns + self.more_tokens + n_fine
        return self.image_token * n_tokens


def _unpadded(size: tuple[int, int], rows: int, columns: int) -> tuple[int, int]:
    """Return the rows and columns of patches that an image of this width and height has on a
    canvas, less those of padding alone."""
    width, height = size
    if width / height > columns / rows:
        padding = rows - int(round(height * (columns / width), 7))
        return rows - padding // 2 * 2, columns
    padding = columns - int(round(width * (rows / height), 7))
    return rows, columns - padding // 2 * 2


class PaliGemma(Reader):
    bidirectional = "prompt"
    adds_special_tokens = False

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        text = files.config.get("text_config") or {}
        length = getattr(self.processor, "image_seq_length", None) or text.get("num_image_tokens")
        if not length:
            raise UnsupportedImages(
                f"{files.folder}: neither preprocessor_config.json says how many tokens an image "
                "has (`image_seq_length`) nor config.json (`text_config.num_image_tokens`)"
            )
        self.length = int(length)

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        return self.image_token * self.length


class Qwen2VL(Reader):
    placeholder = "<|vision_start|><|image_pad|><|vision_end|>"
    tokens = ("<|vision_start|>", "<|vision_end|>", "<|video_pad|>")
    inputs = ("pixel_values", "image_grid_thw")

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.image_token = files.named_token("image_token", "<|image_pad|>")

    def options(self, detail: Detail) -> dict[str, Any]:
        if detail != "low":
            return {}
        least = self.processor.size["shortest_edge"]
        most = self.processor.size["longest_edge"]
        of_token = (self.processor.patch_size * self.processor.merge_size) ** 2
        low = max(least, LOW_TOKENS * of_token)
        return {"size": {"shortest_edge": least, "longest_edge": min(most, low)}}

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        n_patches = int(outcome["image_grid_thw"].prod())
        tokens = self.image_token * (n_patches // self.processor.merge_size**2)
        return f"<|vision_start|>{tokens}<|vision_end|>"


class Gemma3(Reader):
    bidirectional = "image"

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.image_token = files.named_token("image_token", "<image_soft_token>")
        begin = files.named_token("boi_token", "<start_of_image>")
        end = files.named_token("eoi_token", "<end_of_image>")
        length = files.processor.get("image_seq_length") or 256
        self.placeholder = begin
        self.tokens = (begin, end)
        self.one = f"\n\n{begin}{self.image_token * int(length)}{end}\n\n"
        """Text of an image, or of a part of it."""

    def options(self, detail: Detail) -> dict[str, Any]:
        def setting(name: str, default: Any) -> Any:
            value = getattr(self.processor, name, None)
            return default if value is None else value

        return {  # what checkpoints leave open
            "do_pan_and_scan": bool(self.processor.do_pan_and_scan) and detail != "low",
            "pan_and_scan_min_crop_size": setting("pan_and_scan_min_crop_size", 256),
            "pan_and_scan_max_num_crops": setting("pan_and_scan_max_num_crops", 4),
            "pan_and_scan_min_ratio_to_activate": setting(
                "pan_and_scan_min_ratio_to_activate", 1.2
            ),
        }

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        n_crops = int(outcome["num_crops"][0])
        if not n_crops:
            return self.one
        crops = " ".join([self.one] * n_crops)
        return (
            f"Here is the original image {self.one} and here are some crops to help you see "
            f"better {crops}"
        )


class Mllama(Reader):
    placeholder = "<|image|>"
    looks_ahead = True
    inputs = ("pixel_values", "aspect_ratio_ids", "aspect_ratio_mask", "num_tiles")

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.image_token = files.named_token("image_token", "<|image|>")

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        return self.image_token


class Pixtral(Reader):
    """Mistral's images, also under the name of LLaVA: of any size, with a token behind each row."""

    inputs = ("pixel_values", "image_sizes")

    def __init__(self, files: ModelFiles) -> None:
        super().__init__(files)
        self.image_token = self.placeholder = files.named_token("image_token", "[IMG]")
        self.row_end = files.named_token("image_break_token", "[IMG_BREAK]")
        self.image_end = files.named_token("image_end_token", "[IMG_END]")
        self.tokens = (self.row_end, self.image_end)
        merged = int(files.processor.get("spatial_merge_size") or 1)
        self.patch_size = int(files.processor.get("patch_size") or 16) * merged

    def options(self, detail: Detail) -> dict[str, Any]:
        return {"patch_size": self.patch_size}

    def text(self, outcome: Outcome, size: tuple[int, int]) -> str:
        height, width = outcome["image_sizes"][0]
        row = self.image_token * (width // self.patch_size)
        return self.row_end.join([row] * (height // self.patch_size)) + self.image_end
