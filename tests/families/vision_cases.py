"""Prompts with images for every family that puts encodings in the place of tokens.

The arrays of an image are random, in the shapes that the family's image processor makes of one
image of so many pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tests.helpers.vision_tokens import IMAGE_SIZE, PATCH_SIZE, token_id
from tgi_async.wire.messages import Span

Arrays = Mapping[str, NDArray[Any]]
SIZES = ((28, 56), (70, 35), (49, 42))
"""Heights and widths of images."""


class Picture(NamedTuple):
    """An image of a prompt."""

    arrays: Arrays
    tokens: list[int]
    """What stands in its place."""


class Prompt(NamedTuple):
    """Tokens with images among them."""

    tokens: list[int]
    pictures: list[tuple[int, Picture]]
    """Images, and where the tokens of each begin."""


class VisionCase(NamedTuple):
    """A family."""

    arrays: Callable[[np.random.Generator, int, int], Arrays]
    """Of an image, by its height and width."""
    expand: Callable[[int, Arrays], list[int]]
    """The tokens of an image whose encoding has so many rows."""
    image_token: str = "<image>"
    axis: int = 0
    """Along which the arrays of several images lie."""
    bidirectional: Literal["", "image", "prompt"] = ""
    types: str = ""
    """What transformers calls the input that says which tokens are images, if it has one."""
    kind: str = ""
    """`model_type`, where the case is named otherwise."""


def _pixels(random: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    return random.normal(0.0, 1.0, shape).astype(np.float32)


def _square(random: np.random.Generator, height: int, width: int) -> Arrays:
    return {"pixel_values": _pixels(random, 1, 3, IMAGE_SIZE, IMAGE_SIZE)}


def _large(random: np.random.Generator, height: int, width: int) -> Arrays:
    return {"pixel_values": _pixels(random, 1, 3, 112, 112)}


def _tiles(random: np.random.Generator, height: int, width: int) -> Arrays:
    """One crop of the whole, and those of the grid that fits best."""
    n = {(28, 56): 2, (70, 35): 2, (49, 42): 4}[height, width]
    pixels = _pixels(random, 1, 1 + n, 3, IMAGE_SIZE, IMAGE_SIZE)
    return {"pixel_values": pixels, "image_sizes": np.array([[height, width]])}


def _masked(random: np.random.Generator, height: int, width: int) -> Arrays:
    height, width = min(height, 2 * IMAGE_SIZE), min(width, 2 * IMAGE_SIZE)
    return {
        "pixel_values": _pixels(random, 1, 1, 3, height, width),
        "pixel_attention_mask": np.ones((1, 1, height, width), np.int64),
    }


def _crops(random: np.random.Generator, height: int, width: int) -> Arrays:
    n = -(-height // IMAGE_SIZE) * -(-width // IMAGE_SIZE) + 1
    shape = 1, n, 3, IMAGE_SIZE, IMAGE_SIZE
    return {
        "pixel_values": _pixels(random, *shape),
        "pixel_attention_mask": np.ones((1, n, *shape[-2:]), np.int64),
    }


def _patches(random: np.random.Generator, height: int, width: int) -> Arrays:
    unit = 2 * PATCH_SIZE
    grid = 1, height // unit * 2, width // unit * 2
    pixels = _pixels(random, grid[1] * grid[2], 3 * 2 * PATCH_SIZE**2)
    return {"pixel_values": pixels, "image_grid_thw": np.array([grid])}


def _small_squares(random: np.random.Generator, height: int, width: int) -> Arrays:
    given = dict(_patches(random, height, width))
    pixels = given["pixel_values"]
    given["pixel_values"] = pixels[:, : 3 * PATCH_SIZE**2].reshape(-1, 3, PATCH_SIZE, PATCH_SIZE)
    return given


def _merged(random: np.random.Generator, height: int, width: int) -> Arrays:
    given = dict(_small_squares(random, height, width))
    pixels = given["pixel_values"]
    return {
        **given,
        "pixel_values": pixels.reshape(len(pixels), -1),
        "image_merge_sizes": np.array([2]),
    }


def _rectangle(random: np.random.Generator, height: int, width: int) -> Arrays:
    """Of whole merged patches."""
    height, width = (size // (2 * PATCH_SIZE) * 2 * PATCH_SIZE for size in (height, width))
    pixels = _pixels(random, 1, 3, height, width)
    return {"pixel_values": pixels, "image_sizes": np.array([[height, width]])}


def _alone(token: str = "<image>") -> Callable[[int, Arrays], list[int]]:
    return lambda n, arrays: [token_id(token)] * n


def _between(before: str, token: str, after: str) -> Callable[[int, Arrays], list[int]]:
    return lambda n, arrays: [token_id(before), *[token_id(token)] * n, token_id(after)]


def _in_rows(n: int, arrays: Arrays) -> list[int]:
    """Each crop behind a token of its own."""
    n_crops = arrays["pixel_values"].shape[1]
    fake, image = token_id("<fake_token_around_image>"), token_id("<image>")
    tokens: list[int] = []
    for at in range(n_crops):
        place = "<global-img>" if at == n_crops - 1 else f"<row_1_col_{1 + at % 4}>"
        tokens += [fake, token_id(place), *[image] * (n // n_crops)]
    return [*tokens, fake]


FAKES = _between("<fake_token_around_image>", "<image>", "<fake_token_around_image>")
VISION = _between("<|vision_start|>", "<|image_pad|>", "<|vision_end|>")
SOFT = _between("<start_of_image>", "<image_soft_token>", "<end_of_image>")
QWEN = VisionCase(_patches, VISION, "<|image_pad|>", types="mm_token_type_ids")

CASES: dict[str, VisionCase] = {
    "aria": VisionCase(_square, _alone()),
    "aya_vision": VisionCase(_square, _alone()),
    "cohere2_vision": VisionCase(_square, _alone()),
    "deepseek_vl": VisionCase(_square, _alone()),
    "exaone4_5": VisionCase(_patches, VISION, "<|image_pad|>"),
    "glm46v": QWEN,
    "glm4v": QWEN,
    "glm4v_moe": QWEN,
    "glm_ocr": QWEN,
    "got_ocr2": VisionCase(_large, _alone()),
    "hyperclovax_vision_v2": VisionCase(_patches, VISION, "<|image_pad|>"),
    "internvl": VisionCase(_square, _alone()),
    "kimi_k25": VisionCase(_small_squares, VISION, "<|image_pad|>"),
    "lighton_ocr": VisionCase(_rectangle, _alone()),
    "llava, granite": VisionCase(_square, _alone()),
    "llava, pixtral": VisionCase(_rectangle, _alone()),
    "llava_next_video": VisionCase(_tiles, _alone()),
    "llava_onevision": VisionCase(_tiles, _alone()),
    "mistral3": VisionCase(_rectangle, _alone()),
    "paddleocr_vl": VisionCase(_small_squares, VISION, "<|image_pad|>", types="mm_token_type_ids"),
    "qianfan_ocr": VisionCase(_square, _alone()),
    "video_llama_3": VisionCase(_merged, VISION, "<|image_pad|>"),
    "vipllava": VisionCase(_square, _alone()),
    "gemma3": VisionCase(
        _square, SOFT, "<image_soft_token>", bidirectional="image", types="token_type_ids"
    ),
    "idefics2": VisionCase(_masked, FAKES, axis=1),
    "idefics3": VisionCase(_crops, _in_rows, axis=1),
    "llava": VisionCase(_square, _alone()),
    "llava_next": VisionCase(_tiles, _alone()),
    "paligemma": VisionCase(_square, _alone(), bidirectional="prompt", types="token_type_ids"),
    "qwen2_5_vl": QWEN,
    "qwen2_vl": QWEN,
    "qwen3_vl": QWEN,
    "qwen3_vl_moe": QWEN,
    "smolvlm": VisionCase(_crops, _in_rows, axis=1),
}


def picture(case: VisionCase, n_rows: Callable[[Arrays], int], seed: int, at: int) -> Picture:
    """An image of size number `at`."""
    arrays = case.arrays(np.random.default_rng(seed), *SIZES[at])
    return Picture(arrays, case.expand(n_rows(arrays), arrays))


def prompt(*parts: list[int] | Picture) -> Prompt:
    tokens: list[int] = []
    pictures: list[tuple[int, Picture]] = []
    for part in parts:
        if isinstance(part, Picture):
            pictures.append((len(tokens), part))
            tokens += part.tokens
        else:
            tokens += part
    return Prompt(tokens, pictures)


def words(seed: int, n: int) -> list[int]:
    return [int(one) for one in np.random.default_rng(seed).integers(1, 256, n)]


def prompts(case: VisionCase, n_rows: Callable[[Arrays], int]) -> list[Prompt]:
    """One image; three of unequal sizes; an image after text; the first again; no image."""

    def image(seed: int, at: int) -> Picture:
        return picture(case, n_rows, seed, at)

    one = prompt(words(1, 7), image(1, 0), words(2, 9))
    three = prompt(image(2, 1), words(3, 1), image(3, 0), words(4, 6), image(4, 2), words(5, 4))
    after = prompt(words(6, 40), image(5, 2), words(7, 2))
    return [one, three, after, one, prompt(words(8, 23))]


def spans(case: VisionCase, given: Prompt) -> list[Span]:
    """Positions that attend in both directions."""
    if not given.pictures or not case.bidirectional:
        return []
    if case.bidirectional == "prompt":
        return [Span(0, len(given.tokens))]
    image = token_id(case.image_token)
    found = []
    for start, one in given.pictures:
        at = [start + i for i, token in enumerate(one.tokens) if token == image]
        found.append(Span(at[0], at[-1] + 1))
    return found


def together(case: VisionCase, given: Prompt) -> dict[str, NDArray[Any]]:
    """The arrays of all images of a prompt, as transformers' processors make them of all."""
    found: dict[str, NDArray[Any]] = {}
    for name in given.pictures[0][1].arrays if given.pictures else ():
        arrays = [one.arrays[name] for _, one in given.pictures]
        shape = np.max([one.shape for one in arrays], axis=0)
        shape[case.axis] = 0
        padded = [
            np.pad(one, [(0, max(0, n - m)) for n, m in zip(shape, one.shape, strict=True)])
            for one in arrays
        ]
        found[name] = np.concatenate(padded, axis=case.axis)
    return found
