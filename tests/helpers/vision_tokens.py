"""The tokens and sizes that tiny models of images, their processors and tokenizers agree on."""

from __future__ import annotations

N_BYTES = 256
"""The first tokens are the bytes of a text, in the order of GPT-2's byte alphabet."""
SPECIALS = (
    "<pad>",
    "<s>",
    "</s>",
    "<unk>",
    "<image>",
    "<fake_token_around_image>",
    "<end_of_utterance>",
    "<global-img>",
    "<|image|>",
    "<|begin_of_text|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<start_of_image>",
    "<image_soft_token>",
    "<end_of_image>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
)
VOCABULARY = 320
"""Rows of the models' embeddings."""
IMAGE_SIZE = 28
"""Of a square that goes through an encoder at once, in pixels."""
PATCH_SIZE = 7


def token_id(name: str) -> int:
    return N_BYTES + SPECIALS.index(name)
