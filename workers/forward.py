"""One forward pass of a model: its inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from tgi_async.wire.messages import Image
from workers.attention.context import AttentionContext


class Inserted(NamedTuple):
    """What stands in the place of the embeddings of some packed tokens, such as an image's
    encoding."""

    at: torch.Tensor
    """int64 [n]: indices of packed tokens."""
    rows: torch.Tensor
    """[n, hidden]; of some models [n, k * hidden]: what follows is added to what the first layers
    make."""


class CrossAttended(NamedTuple):
    """Encoded images of a row, packed tokens `start` to `start + n - 1` of which attend to them."""

    start: int
    n: int
    first: int
    """Position of the first of them."""
    images: Sequence[SeenImage]
    """All of the row, those that none of these tokens see included: a family may have tokens that
    are before all images attend to what follows."""


class SeenImage(NamedTuple):
    """An encoded image, and from which positions a row sees it."""

    digest: bytes
    encoding: torch.Tensor
    """As `Vision.encode` returned it."""
    start: int
    end: int | None
    """Behind the last position that sees it; None: all that follow do."""


@dataclass(frozen=True, slots=True, eq=False)
class ForwardBatch:
    """Tokens of several rows, packed: one of each decode row, then the chunks of prompts.

    Raises ValueError for parts that do not fit each other.
    """

    tokens: torch.Tensor
    """int64 [T]"""
    positions: torch.Tensor
    """int64 [T], or [axes, T]."""
    wanted: torch.Tensor
    """int64 [S]: indices of packed tokens whose logits are wanted, any number for a row."""
    attention: AttentionContext
    inserted: Inserted | None = None
    """Where it is, `tokens` has any that has an embedding."""
    adapters: torch.Tensor | None = None
    """int64 [rows]: the adapter of each row, in the order of the packed tokens."""
    cross: Sequence[CrossAttended] = ()
    """Of the rows that see images by attending to them, in the order of the packed tokens."""
    hidden: bool = False
    """Whether the hidden states of the wanted tokens are asked for beside their logits."""

    def __post_init__(self) -> None:
        n_tokens = self.attention.n_tokens
        if not len(self.tokens) == self.positions.shape[-1] == n_tokens:
            raise ValueError(
                f"{len(self.tokens)} tokens at {self.positions.shape[-1]} positions do not fit "
                f"attention over {n_tokens} tokens"
            )

    def text(
        self, model: str, *, inserts: bool = False, axes: bool = False, cross: bool = False
    ) -> torch.Tensor:
        """Return the tokens, for a `model` (its name, for messages) that takes nothing else, but
        for what stands in the place of embeddings, several axes of positions or images to attend
        to, where it takes these.

        Raises ValueError for a batch that has more than that.
        """
        asked = {
            "what stands in the place of embeddings": self.inserted is not None and not inserts,
            f"positions of {self.positions.dim()} dimensions": self.positions.dim() > 1 + axes,
            "adapters": self.adapters is not None,
            "images to attend to": bool(self.cross) and not cross,
        }
        given = ", ".join(name for name, there in asked.items() if there)
        if not given:
            return self.tokens
        raise ValueError(f"{model} takes tokens at one axis of positions, and was given {given}")


class ForwardOutput(NamedTuple):
    """The outputs of a forward pass."""

    logits: torch.Tensor
    """[S, vocabulary]"""
    hidden_states: torch.Tensor | None = None
    """[S, hidden] in the model's dtype, as the language-model head takes them, behind the last
    norm; None where they were not asked for."""


class Vision(Protocol):
    """What a model does with images."""

    image_token_id: int
    """The placeholder in whose place an encoding's rows stand, one each."""
    cross: bool
    """Whether tokens attend to images: encodings stand in no token's place."""
    mrope: bool
    """Whether positions have three axes where a prompt has images."""

    def encode(self, arrays: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Encode one image, of the arrays that its preprocessing made, by the names of the model's
        code; on any device -> rows for its placeholders, as in `Inserted`, on the model's, or with
        `cross` whatever its layers attend to; it holds all that is kept of an image, so that its
        size says how much.

        Raises ValueError for arrays that do not fit the model.
        """
        ...

    def seen(
        self, tokens: NDArray[np.int64], images: Sequence[Image]
    ) -> list[tuple[int, int | None]]:
        """Return for each image of a prompt, int64 [n] tokens without what was generated, from
        which position on it is seen and where no longer, None being never; with `cross`."""
        ...

    def positions(
        self, tokens: NDArray[np.int64], images: Sequence[Mapping[str, torch.Tensor]]
    ) -> NDArray[np.int64]:
        """Return int64 [3, len(tokens)]: the positions of a prompt with these images, with `mrope`.
        What follows it goes on at their maximum plus one, equal in all axes.

        Raises ValueError for images that do not fit their placeholders.
        """
        ...


class Model(Protocol):
    """A causal language model over packed tokens and a paged cache."""

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """Compute a batch. The new keys and values are in the cache afterwards.

        Raises ValueError for a batch that has parts which the model does not take, and RuntimeError
        where the batch, or a row of it, cannot be computed.
        """
        ...


class HeadedModel(Model, Protocol):
    """A model whose language-model head can be used apart from it."""

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return [n, vocabulary] of hidden states [n, hidden], in any float dtype: what logits are
        before they are scaled and capped, which does not change their order."""
        ...
