"""Medusa: heads beside the language-model head, each of which guesses a token further ahead.

A head is residual blocks, x + silu(W x + b), and behind them a matrix of its own over the
vocabulary (v1) or the model's language-model head (v2), which is used where it is and takes no
further memory. A block is hidden * (hidden + 1) numbers, a matrix vocabulary * hidden.

The tensors are named as in Medusa's own checkpoints or as in vLLM's.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch.nn.functional import silu

from workers.draft_models.checkpoint import DraftCheckpoint
from workers.draft_models.config import DraftModel
from workers.draft_models.heads import best, proposals
from workers.layers.linear import Linear
from workers.speculation.source import DraftRows, Proposal


class _Names(NamedTuple):
    """What the tensors of a head are called."""

    blocks: list[str]
    matrix: str


class MedusaSource:
    """See `source.DraftSource`."""

    method: ClassVar[str] = "medusa"
    wants_hidden: ClassVar[bool] = True

    def __init__(self, checkpoint: DraftCheckpoint, model: DraftModel, n_heads: int) -> None:
        """Load the first `n_heads` heads. Raises UnsupportedModel."""
        self._target = checkpoint.target
        size = self._target.hidden_size
        names = _names(checkpoint, model, n_heads)
        self._blocks = [
            [checkpoint.linear(block, size, size) for block in one.blocks] for one in names
        ]
        self._token_map: torch.Tensor | None = None
        """The tokens that the rows of the matrices stand for, where those are not all."""
        self._matrices: list[Linear] = []
        """One a head; none: the target's."""
        if names[0].matrix not in checkpoint.names:
            return
        if "token_map" in checkpoint.names:
            self._token_map = checkpoint.ids("token_map")
        loaded: dict[str, Linear] = {}  # all heads may have the same
        for one in names:
            if one.matrix not in loaded:
                loaded[one.matrix] = self._matrix(checkpoint, one.matrix)
            self._matrices.append(loaded[one.matrix])

    def admit(self, row: int, tokens: Sequence[int], n_prompt: int, tenant: str) -> None:
        """Keep nothing of a row, for its hidden state tells all."""

    def observe(self, row: int, tokens: Sequence[int]) -> None:
        """Keep nothing."""

    def release(self, row: int) -> None:
        """Remove nothing."""

    @torch.inference_mode()
    def propose(self, wanted: DraftRows) -> list[Proposal]:
        """Return what each head finds likeliest. Raises ValueError without hidden states."""
        if wanted.hidden is None:
            raise ValueError("Medusa drafts from hidden states, and was given none")
        if not wanted.rows:
            return []
        hidden = wanted.hidden.to(self._target.dtype)
        states = [_through(blocks, hidden) for blocks in self._blocks[: max(wanted.limits)]]
        if self._matrices:
            found = torch.stack(list(map(best, self._matrices, states)))
        else:
            # At once, so that the head is read from memory once.
            found = best(self._target.head, torch.cat(states)).view(len(states), -1)
        if self._token_map is not None:
            found = self._token_map[found]
        return proposals(found.t(), wanted.limits)

    def _matrix(self, checkpoint: DraftCheckpoint, name: str) -> Linear:
        n_rows = checkpoint.shape(name)[0]
        weight = checkpoint.take(name, n_rows, self._target.hidden_size)
        tokens, most = self._token_map, self._target.vocab_size
        if tokens is not None and n_rows > len(tokens):
            weight = weight[tokens]
        elif n_rows > (most if tokens is None else len(tokens)):
            raise checkpoint.problem(
                f"{name} is over {n_rows} tokens, and this model has {most}: it is the draft model "
                "of another one"
            )
        return checkpoint.layer(weight)


def _through(blocks: list[Linear], x: torch.Tensor) -> torch.Tensor:
    for block in blocks:
        x = x + silu(block(x))
    return x


def _names(checkpoint: DraftCheckpoint, model: DraftModel, n_heads: int) -> list[_Names]:
    config = model.config
    n_layers = config.get("medusa_num_layers", config.get("num_hidden_layers", 1))
    if not isinstance(n_layers, int) or n_layers < 0:
        raise checkpoint.problem(f"the layers of its heads must be a number. Given: {n_layers!r}")
    layers = range(n_layers)
    if any(name.startswith(("blocks.", "lm_heads.")) for name in checkpoint.names):
        shared = config.get("original_lm_head", False)
        return [
            _Names(
                [f"blocks.{at}.layers.{layer}" for layer in layers],
                f"lm_heads.{0 if shared else at}.weight",
            )
            for at in range(n_heads)
        ]
    return [
        _Names([f"{at}.{layer}.linear" for layer in layers], f"{at}.{n_layers}.weight")
        for at in range(n_heads)
    ]
