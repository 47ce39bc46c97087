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

    def of(self, digest: bytes, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the encoding of an image of these arrays.

        Raises ValueError for arrays that do not fit the model.
        """
        found = self._found.get(digest)
        if found is not None:
            self._found.move_to_end(digest)
            return found
        found = self._held.get(digest)
        if found is None:
            found = self._vision.encode(arrays)
            self.n_encoded += 1
        self._found[digest] = self._held[digest] = found
        self._bytes += found.nbytes
        while self._bytes > self._max_bytes and len(self._found) > 1:
            _, dropped = self._found.popitem(last=False)
            self._bytes -= dropped.nbytes
        return found
