"""The encodings of images, each computed once and kept while there is room."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from weakref import WeakValueDictionary

import torch

from workers.forward import Vision

MAX_BYTES = 2**28
"""Bytes of encodings that are kept: hundreds of images in the place of tokens, or one or two that
layers of a large model attend to."""
MOST_HELD = 2**33
"""Bytes of encodings that rows may hold besides: forty images of the largest models whose layers
attend to them."""


class Encodings:
    """Encodings by the digests of their images; the least recently used ones are dropped."""

    def __init__(self, vision: Vision, max_bytes: int = MAX_BYTES) -> None:
        """Encode by `vision`, and keep up to `max_bytes`."""
        self._vision = vision
        self._max_bytes = max_bytes
        self._found: OrderedDict[bytes, torch.Tensor] = OrderedDict()
        self._held: WeakValueDictionary[bytes, torch.Tensor] = WeakValueDictionary()
        """Those that somebody holds, dropped here or not."""
        self._bytes = 0
        self.n_encoded = 0
        """Images that went through the encoder."""

    def of(
        self, digest: bytes, arrays: Mapping[str, torch.Tensor], most_held: int = MOST_HELD
    ) -> torch.Tensor:
        """Return the encoding of an image of these arrays.

        Raises ValueError for arrays that do not fit the model, and for an image that is not encoded
        yet while others have more than `most_held` bytes in all.
        """
        found = self._found.get(digest)
        if found is not None:
            self._found.move_to_end(digest)
            return found
        found = self._held.get(digest)
        if found is None:
            held = sum(one.nbytes for one in self._held.values())
            if held > most_held:
                raise ValueError(
                    f"the images that are being answered take {held} bytes of the worker's memory, "
                    f"and no more are taken above {most_held}. Try again when some are done"
                )
            found = self._vision.encode(arrays)
            self.n_encoded += 1
        self._found[digest] = self._held[digest] = found
        self._bytes += found.nbytes
        while self._bytes > self._max_bytes and len(self._found) > 1:
            _, dropped = self._found.popitem(last=False)
            self._bytes -= dropped.nbytes
        return found
