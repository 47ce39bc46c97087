"""The images of the rows: what a step needs of their encodings, and their positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Admit, Image
from workers.decodes import Decodes
from workers.forward import CrossAttended, Inserted, SeenImage, Vision
from workers.transfer import send
from workers.vision.encodings import MAX_BYTES, Encodings
from workers.vision.pixels import read


class Part(NamedTuple):
    """Packed tokens of one row."""

    row: int
    start: int
    """Of the first of them."""
    n: int
    first: int
    """Its position."""


class _RowImage:
    """An image of a row."""

    __slots__ = ("arrays", "digest", "encoding", "places", "seen")

    def __init__(
        self,
        image: Image,
        arrays: Mapping[str, torch.Tensor],
        places: NDArray[np.int64],
        seen: tuple[int, int | None],
    ) -> None:
        self.digest = image.digest
        self.arrays = arrays
        self.places = places
        """Positions of its placeholders, ascending."""
        self.seen = seen
        self.encoding: torch.Tensor | None = None
        """Held while a chunk has computed some of its placeholders and not all, or, where tokens
        attend to images, as long as the row is there."""


class RowImages:
    """The images of the rows of a persistent batch."""

    def __init__(
        self, vision: Vision, max_rows: int, device: torch.device, max_bytes: int = MAX_BYTES
    ) -> None:
        """Encode by `vision`, and keep up to `max_bytes` of encodings."""
        self._vision = vision
        self._device = device
        self._encodings = Encodings(vision, max_bytes)
        self._images: dict[int, list[_RowImage]] = {}
        self._positions: dict[int, NDArray[np.int64]] = {}
        self._broken: dict[int, str] = {}
        self._offsets = np.zeros(max_rows, np.int64)
        """[max_rows]: what positions behind the prompt of each row are more than its length says,
        or, below 0, less."""

    @property
    def n_encoded(self) -> int:
        """Images that went through the encoder, since the start."""
        return self._encodings.n_encoded

    def admit(self, admit: Admit) -> None:
        """Add a row. One whose images cannot be used fails when it computes a token."""
        self.release(admit.row)
        if not admit.images:
            return
        tokens = np.asarray(admit.tokens[: admit.n_prompt], np.int64)
        vision = self._vision
        try:
            arrays = [read(image) for image in admit.images]
            seen: list[tuple[int, int | None]] = [(0, 0)] * len(arrays)
            if vision.cross:
                seen = vision.seen(tokens, admit.images)
            if vision.mrope:
                self._positions[admit.row] = vision.positions(tokens, arrays)
        except ValueError as error:
            self._broken[admit.row] = str(error)
            return
        found = self._images[admit.row] = []
        for image, own, sight in zip(admit.images, arrays, seen, strict=True):
            here = tokens[image.start : image.end] == vision.image_token_id
            found.append(_RowImage(image, own, image.start + np.flatnonzero(here), sight))
        if vision.mrope:
            positions = self._positions[admit.row]
            self._offsets[admit.row] = positions.max() + 1 - len(tokens)

    def release(self, row: int) -> None:
        """Remove a row, which may not be there."""
        self._images.pop(row, None)
        self._positions.pop(row, None)
        self._broken.pop(row, None)
        self._offsets[row] = 0

    def touches(self, decodes: Iterable[int], chunks: Iterable[int]) -> bool:
        """Return whether images make a difference to these rows: to a decode, where it attends to
        images or is at another position than its length says."""
        if any(row in self._images or row in self._broken for row in chunks):
            return True
        cross = self._vision.cross
        return any(self._offsets[row] or (cross and row in self._images) for row in decodes)

    def positions(
        self, decodes: Decodes, parts: Sequence[Part], places: Sequence[NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        """Return the positions, as the model counts them, of decodes and of chunks, which are at
        these `places` of their rows: int64 [n], or [3, n] where a chunk has an image that says
        so."""
        found = [decodes.positions + self._offsets[decodes.rows]]
        found += [self._in_chunk(part, at) for part, at in zip(parts, places, strict=True)]
        n_axes = max(one.ndim for one in found)
        if n_axes > 1:
            found = [np.broadcast_to(one, (3, one.shape[-1])) for one in found]
        return np.concatenate(found, axis=-1)

    def _in_chunk(self, part: Part, places: NDArray[np.int64]) -> NDArray[np.int64]:
        known = self._positions.get(part.row)
        if known is None:
            return places
        n_prompt = known.shape[1]
        behind: NDArray[np.int64] = places[places >= n_prompt] + self._offsets[part.row]
        if len(behind) == len(places):
            return behind
        within = known[:, places[places < n_prompt]]
        return np.concatenate([within, np.broadcast_to(behind, (3, len(behind)))], axis=1)

    def inserted(self, parts: Iterable[Part]) -> Inserted | None:
        """Return what stands in the place of the placeholders of these chunks; encode what is
        needed for it.

        Raises RuntimeError for a row whose images cannot be used.
        """
        at: list[NDArray[np.int64]] = []
        rows: list[torch.Tensor] = []
        for part in parts:
            for image in self._of(part.row):
                ends = [part.first, part.first + part.n]
                begin, end = np.searchsorted(image.places, ends).tolist()
                if begin == end or self._vision.cross:
                    continue
                encoding = self._encoded(image)
                if len(encoding) != len(image.places):
                    raise RuntimeError(
                        f"an image has {len(image.places)} placeholders and an encoding of "
                        f"{len(encoding)} rows"
                    )
                at.append(image.places[begin:end] + (part.start - part.first))
                rows.append(encoding[begin:end])
                image.encoding = encoding if end < len(image.places) else None
        if not at:
            return None
        return Inserted(send(np.concatenate(at), self._device), torch.cat(rows))

    def cross(self, decodes: Decodes, parts: Sequence[Part]) -> list[CrossAttended]:
        """Return what decodes and chunks attend to; encode what is needed for it.

        Raises RuntimeError for a row whose images cannot be used.
        """
        if not self._vision.cross:
            return []
        found = []
        lines = zip(decodes.rows.tolist(), decodes.positions.tolist(), strict=True)
        singly = [Part(row, line, 1, position) for line, (row, position) in enumerate(lines)]
        for part in (*singly, *parts):
            images = []
            for one in self._of(part.row):
                # Each step needs it: dropped in between, it would be computed in each.
                one.encoding = self._encoded(one)
                images.append(SeenImage(one.digest, one.encoding, *one.seen))
            if images:
                found.append(CrossAttended(part.start, part.n, part.first, images))
        return found

    def _of(self, row: int) -> list[_RowImage]:
        if row in self._broken:
            raise RuntimeError(self._broken[row])
        return self._images.get(row, [])

    def _encoded(self, image: _RowImage) -> torch.Tensor:
        if image.encoding is not None:
            return image.encoding
        try:
            return self._encodings.of(image.digest, image.arrays)
        except ValueError as error:
            raise RuntimeError(str(error)) from error
