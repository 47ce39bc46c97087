"""Rows of a model whose layers attend to images, computed by it and by transformers' own code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForImageTextToText, GenerationConfig
from transformers.models.idefics.processing_idefics import (
    image_attention_mask_for_packed_input_ids,
    incremental_to_binary_attention_mask,
)
from transformers.models.mllama.processing_mllama import (
    convert_sparse_cross_attention_mask_to_dense,
    get_cross_attention_token_mask,
)

from tests.families.vision_cases import Picture, Prompt, VisionCase
from tests.helpers.vision_tokens import IMAGE_SIZE, token_id
from tgi_async.wire.messages import Image
from workers.attention.context import AttentionContext, Prefill
from workers.forward import CrossAttended, ForwardBatch, SeenImage
from workers.models.loading import Loaded

TOKENS = {"idefics": token_id("<image>"), "mllama": token_id("<|image|>")}
"""Of an image, by `model_type`."""
EOS = token_id("</s>")
BLOCK_SIZE = 4
BLOCKS_PER_ROW = 16
TILES = 4
RATIO_IDS = {1: 1, 2: 2, 4: 6}
"""Of images of so many tiles."""

TEXTS = (
    ("*what is this?", (1,)),
    ("a text before it *and behind", (2,)),
    ("two at once ** then another one * at the end", (4, 1, 2)),
    ("no image in this one, which is long", ()),
    ("the last token is one *", (1,)),
    ("text *of which$the end was reached *another$one", (1, 4)),
)
"""Texts, and the tiles that their images fill."""

Arrays = Mapping[str, torch.Tensor]
CASES_OF = {
    "idefics": VisionCase(lambda *_: {}, lambda *_: [], "<image>"),
    "mllama": VisionCase(lambda *_: {}, lambda *_: [], "<|image|>"),
}
"""For helpers of families whose images are rows, by `model_type`."""


def arrays_of(kind: str, seed: int, n_tiles: int = 1) -> Arrays:
    """An image, as a family's preprocessing makes it; of Mllama one that fills so many tiles."""
    draw = torch.Generator().manual_seed(seed)
    shape = 3, IMAGE_SIZE, IMAGE_SIZE
    if kind == "idefics":
        return {"pixel_values": torch.randn(shape, generator=draw)}
    pixels = torch.zeros(1, 1, TILES, *shape)
    pixels[0, 0, :n_tiles] = torch.randn(n_tiles, *shape, generator=draw)
    return {
        "pixel_values": pixels,
        "aspect_ratio_ids": torch.tensor([[RATIO_IDS[n_tiles]]]),
        "aspect_ratio_mask": (torch.arange(TILES) < n_tiles).long()[None, None],
    }


class Row(NamedTuple):
    """A prompt and its images, in the order of their tokens."""

    kind: str
    prompt: list[int]
    images: list[Arrays]

    @property
    def wire(self) -> list[Image]:
        """The images by their places."""
        at = [p for p, token in enumerate(self.prompt) if token == TOKENS[self.kind]]
        return [Image(bytes(16), p, p + 1, "", []) for p in at]


def row_of(kind: str, text: str, images: Sequence[Arrays]) -> Row:
    """A row of a text whose "*" are images and whose "$" are ends of a text; all else stands for
    tokens of its own."""
    special = {"*": TOKENS[kind], "$": EOS}
    return Row(kind, [special.get(one, ord(one) * 7 % 200) for one in text], list(images))


def rows_of(kind: str) -> list[Row]:
    made = []
    for at, (text, tiles) in enumerate(TEXTS):
        images = [arrays_of(kind, 10 * at + n, n) for n in tiles]
        made.append(row_of(kind, text, images))
    return made


def prompt_of(row: Row) -> Prompt:
    pictures = [
        (
            image.start,
            Picture({name: one.numpy() for name, one in arrays.items()}, [TOKENS[row.kind]]),
        )
        for image, arrays in zip(row.wire, row.images, strict=True)
    ]
    return Prompt(row.prompt, pictures)


class Reference:
    """transformers' own code, for one row at a time."""

    def __init__(self, folder: Path, new_tokens: int) -> None:
        self._model: Any = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
        self._model.generation_config = GenerationConfig(
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=0, eos_token_id=None
        )

    @torch.inference_mode()
    def logits(self, row: Row, tokens: Sequence[int]) -> torch.Tensor:
        """[len(tokens), vocabulary] of tokens that go on with a row's prompt."""
        inputs = self._inputs(row, len(tokens) - len(row.prompt))
        logits: torch.Tensor = self._model(torch.tensor([tokens]), use_cache=False, **inputs).logits
        return logits[0]

    @torch.inference_mode()
    def generate(self, row: Row) -> list[int]:
        ids = torch.tensor([row.prompt])
        found = self._model.generate(
            ids, attention_mask=torch.ones_like(ids), **self._inputs(row, 0)
        )
        tokens: list[int] = found[0].tolist()
        return tokens

    def _inputs(self, row: Row, n_new: int) -> dict[str, torch.Tensor]:
        """What its processor makes; each new token sees what the prompt's last one does."""
        n_tokens = len(row.prompt)
        mask: torch.Tensor
        if row.kind == "mllama":
            if not row.images:
                return {}
            names = row.images[0].keys()
            joined = {name: torch.cat([one[name] for one in row.images], 1) for name in names}
            dense = convert_sparse_cross_attention_mask_to_dense(
                [get_cross_attention_token_mask(row.prompt, TOKENS[row.kind])],
                [[int(one["aspect_ratio_mask"].sum()) for one in row.images]],
                TILES,
                n_tokens,
            )
            return joined | {"cross_attention_mask": _extended(torch.from_numpy(dense), n_new)}
        if not row.images:
            pixels = torch.zeros(1, 1, 3, IMAGE_SIZE, IMAGE_SIZE)
            mask = torch.zeros(1, n_tokens, 1, dtype=torch.int64)
        else:
            pixels = torch.stack([one["pixel_values"] for one in row.images])[None]
            tokenizer = SimpleNamespace(
                convert_tokens_to_ids=lambda _: TOKENS[row.kind], eos_token_id=EOS
            )
            seen, _ = image_attention_mask_for_packed_input_ids(
                torch.tensor([row.prompt]), tokenizer, "pt"
            )
            mask = incremental_to_binary_attention_mask(seen, "pt", num_classes=len(row.images))
        return {"pixel_values": pixels, "image_attention_mask": _extended(mask, n_new)}


def _extended(mask: torch.Tensor, n: int) -> torch.Tensor:
    return torch.cat([mask] + [mask[:, -1:]] * n, 1)


class Rows:
    """Rows that a loaded model computes, in chunks and mixed batches."""

    def __init__(self, model: Loaded, rows: Sequence[Row], chunk: int) -> None:
        self._model, self.rows, self._chunk = model, rows, chunk
        n_blocks = len(rows) * BLOCKS_PER_ROW
        order = torch.randperm(n_blocks, generator=torch.Generator().manual_seed(3))
        self._tables = order.to(torch.int32).reshape(len(rows), -1)
        self._cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
        for pool in self._cache.keys + self._cache.values:
            pool.fill_(float("nan"))
        self.tokens = [list(row.prompt) for row in rows]
        self.computed = [0] * len(rows)
        self.logits: list[list[torch.Tensor]] = [[] for _ in rows]
        vision = model.vision
        assert vision is not None
        self._seen: list[list[SeenImage]] = []
        images = {id(image): image for row in rows for image in row.images}
        encoded = {key: vision.encode(image) for key, image in images.items()}
        for row in rows:
            places = vision.seen(np.array(row.prompt), row.wire) if row.images else []
            self._seen.append(
                [
                    SeenImage(bytes(16), encoded[id(image)], *place)
                    for image, place in zip(row.images, places, strict=True)
                ]
            )

    def share(self, row: int, other: int, n: int) -> None:
        """Have a row begin with the first n tokens of another, whole blocks, as computed there."""
        self._tables[row, : n // BLOCK_SIZE] = self._tables[other, : n // BLOCK_SIZE]
        self.computed[row] = n

    @torch.inference_mode()
    def run(self, rows: Sequence[int], new_tokens: int) -> None:
        """Compute the prompts of some rows and go on greedily."""
        ends = {r: len(self.rows[r].prompt) + new_tokens - 1 for r in rows}
        while left := [r for r in rows if self.computed[r] < ends[r]]:
            decodes = [r for r in left if self.computed[r] >= len(self.rows[r].prompt)]
            chunks = [
                (r, min(self._chunk + r, len(self.rows[r].prompt) - self.computed[r]))
                for r in left
                if r not in decodes
            ]
            self._step(decodes, chunks)

    def _step(self, decodes: list[int], chunks: list[tuple[int, int]]) -> None:
        order = [(r, 1) for r in decodes] + chunks
        positions = [torch.arange(self.computed[r], self.computed[r] + n) for r, n in order]
        slots = [
            self._tables[r].long()[at // BLOCK_SIZE] * BLOCK_SIZE + at % BLOCK_SIZE
            for (r, _), at in zip(order, positions, strict=True)
        ]
        starts = np.cumsum([0, *(n for _, n in order)]).tolist()
        context = AttentionContext(
            self._cache,
            torch.cat(slots),
            len(decodes),
            self._tables[decodes].contiguous(),
            torch.tensor([self.computed[r] + 1 for r in decodes], dtype=torch.int32),
            [
                Prefill(start, n, self.computed[r] + n, self._tables[r])
                for (r, n), start in zip(order, starts, strict=False)
                if r not in decodes
            ],
        )
        ids = [torch.tensor(self.tokens[r][self.computed[r] :][:n]) for r, n in order]
        batch = ForwardBatch(
            torch.cat(ids),
            torch.cat(positions),
            torch.arange(starts[-1]),
            context,
            cross=[
                CrossAttended(start, n, self.computed[r], self._seen[r])
                for (r, n), start in zip(order, starts, strict=False)
                if self._seen[r]
            ],
        )
        logits = self._model.forward(batch).logits.split([n for _, n in order])
        for (r, n), part in zip(order, logits, strict=True):
            self.logits[r].append(part.clone())
            self.computed[r] += n
            if self.computed[r] == len(self.tokens[r]):
                self.tokens[r].append(int(part[-1].argmax()))
