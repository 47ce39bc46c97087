"""What an implementation of paged attention is: one subclass of `AttentionBackend`, registered by
its name (`registry`). Models, the runner and CUDA graphs know no more of it than this file says."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

from workers.attention.cache import PagedCache
from workers.attention.context import AttentionContext
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.transfer import send

Metadata = TypeVar("Metadata")

PaddedArray = tuple[NDArray[np.integer], int]
"""The values of the existing rows, and the value that pads the others."""


class DecodeRows(NamedTuple):
    """Rows that compute one token each. On the host."""

    slots: NDArray[np.int64]
    """[n]: block * block_size + offset, where each token's key and value are put."""
    lengths: NDArray[np.int32]
    """[n]: positions of each row, the current one included."""
    block_tables: NDArray[np.int32]
    """[any, width]"""
    lines: NDArray[np.int64]
    """[n]: the line of `block_tables` that is each row's."""


class AttentionCapture(ABC):
    """Attention's part of the input buffers of a CUDA graph: int32 numbers at fixed addresses."""

    sizes: Mapping[str, int]
    """How many numbers each part has, by name."""
    most_rest: int
    """How many numbers of any length may come after all parts, such as block tables."""

    @abstractmethod
    def fill(self, rows: DecodeRows) -> tuple[dict[str, PaddedArray], NDArray[np.int32]] | None:
        """Return what the parts and the rest hold for a step of these rows, none included; or None
        where there is no room for them.

        Raises ValueError for numbers outside the cache.
        """

    @abstractmethod
    def metadata(self, parts: Mapping[str, torch.Tensor]) -> object:
        """Return the backend's metadata over the parts, and the "rest", on the device."""


class AttentionBackend(ABC, Generic[Metadata]):
    """Paged attention for one model shape.

    Raises ValueError for a shape that it does not take.
    """

    name: ClassVar[str]
    """Its name for `--attention`."""
    devices: ClassVar[frozenset[str]]
    """Kinds of devices that it runs on, as torch names them."""
    reads_codes: ClassVar[bool] = False
    """Whether it takes caches of codes (`kv_codes`) besides those of numbers."""
    causal_only: ClassVar[bool] = True
    """Whether it takes no tokens that attend in both directions (`Prefill.spans`)."""
    page_size: ClassVar[int] = 16
    """Its preferred page size in positions, where none is set."""

    def __init__(self, shape: AttentionShape) -> None:
        if refusal := self.shape_refusal(shape):
            raise ValueError(refusal)
        self.shape = shape
        self.notes: list[str] = []
        """Notes for the user on what was given up."""

    @classmethod
    def refusal(cls) -> str | None:
        """Return why it cannot run on this machine, or None."""
        return None

    @classmethod
    def shape_refusal(cls, shape: AttentionShape) -> str | None:
        """Return why it does not take this shape of model, or None."""
        return None

    @abstractmethod
    def build(self, batch: AttentionContext) -> Metadata:
        """Return what it needs to know of a forward pass. All layers share it."""

    def metadata(self, batch: AttentionContext) -> Metadata:
        """Return what was built for this forward pass, by the first layer that asked.

        Raises RuntimeError for a captured pass of another backend, ValueError for one with spans
        that this one does not take.
        """
        found = batch.metadata.get(self)
        if found is None:
            batch.expect_on_host()
            if self.causal_only and not batch.causal:
                raise ValueError(f"{self.name} attention takes no tokens that attend to later ones")
            found = batch.metadata[self] = self.build(batch)
        return cast(Metadata, found)

    def slots(self, batch: AttentionContext) -> torch.Tensor:
        """Return int32 [n_tokens] on the cache's device: where each token's key and value go,
        negative for none. For models that write them themselves."""
        slots = batch.slot_mapping.numpy().astype(np.int32)
        return send(slots, batch.cache.keys[0].device)

    def capture(
        self, cache: PagedCache, n_rows: int, most_positions: int
    ) -> AttentionCapture | None:
        """Return its part of the input buffers of a CUDA graph of so many decode rows, each up to
        `most_positions` long; or None where its work cannot be captured."""
        return None

    @abstractmethod
    def forward(
        self,
        layer: AttentionLayer,
        query: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        batch: AttentionContext,
    ) -> torch.Tensor:
        """Write new keys and values to the cache, and attend. Query [1, n_heads, n_tokens,
        head_dim], key and value [1, n_kv_heads, n_tokens, head_dim], of the cache's dtype -> [1,
        n_tokens, n_heads, head_dim]. Key and value are None where they were written before.

        Raises ValueError for tensors that do not fit the cache and the forward pass.
        """
