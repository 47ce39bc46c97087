"""The fused decoder on a GPU: Triton kernels between products, nothing that waits for the device.

A layer of a batch of decodes takes nine launches: add and norm; queries, keys and values; head
norms, rotation and the write into the cache; attention, and its splits put together; output; add
and norm; gate and up with their activation; down. With more rows than `device_linear.NARROW_ROWS`
the activation is a tenth, with ranks there are two sums over them. Before the layers come angles
and embedding, after them logits (and their scale or cap), three or four in all.

Every address and every size on the host depends on the shapes that are given alone, so that a pass
over an `AttentionContext.captured` can become a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import triton

from workers.attention import registry
from workers.attention.backend import AttentionBackend
from workers.attention.cache import PagedCache
from workers.attention.layer import AttentionLayer, AttentionShape
from workers.attention.triton_paged import code_number, code_scales
from workers.decoder import triton_kernels as kernels
from workers.decoder.families import Block, Description, NotFused, prepare
from workers.forward import ForwardBatch, ForwardOutput, Inserted
from workers.kernels.device_linear import GatedProduct, Product
from workers.layers.linear import Linear
from workers.ranks import Ranks

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MOST_HIDDEN = 2**15
"""Most elements of a row that one program normalizes."""
HEADS = 8
"""Heads that a program of `place` takes."""
LOGITS = 2048
"""Logits that a program of `bound` takes."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer, see `Block`."""

    qkv: Product
    out: Product
    gate_up: GatedProduct
    down: Product
    input_norm: torch.Tensor
    head_norms: torch.Tensor | None
    """Of queries and keys, [2, head_dim]."""
    attention_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp_output_norm: torch.Tensor | None
    window: int
    rope: int | None

    @property
    def products(self) -> tuple[Product | GatedProduct, ...]:
        return self.qkv, self.out, self.gate_up, self.down

    @property
    def tensors(self) -> list[torch.Tensor]:
        linears = chain(*(one.tensors for one in self.products))
        norms = (self.input_norm, self.head_norms, self.attention_norm, self.mlp_norm)
        return [*linears, *(x for x in (*norms, self.mlp_output_norm) if x is not None)]


class DeviceDecoder:
    """A model over packed tokens and a paged cache, on a GPU. See `forward.Model`.

    It also runs on a CPU where Triton interprets its kernels.
    """

    def __init__(
        self,
        attention: registry.Backend,
        description: Description,
        ranks: Ranks | None = None,
    ) -> None:
        """Take the weights out of the described model, layer by layer; with `ranks`, the
        description is of this rank's part.

        Raises NotFused, with the model as it was.
        """
        self._numbers = numbers = description.numbers
        self._ranks = ranks
        self.attention = _attention_of(attention, description)
        self.notes = list(self.attention.notes)
        description.expect("triton_linear", "triton_rows")
        device = description.device
        self._width = triton.next_power_of_2(numbers.hidden)
        self._warps = min(16, max(4, self._width // 512))
        embedding = description.embedding()
        self._embedding: torch.Tensor = prepare("triton_rows", [embedding])(
            [embedding.checkpoint_weight], ""
        )
        self._head: Product = _prepared([description.head()])
        description.forget_head()
        self._layers: list[_Layer] = []
        for at in range(description.n_blocks):
            self._layers.append(_layer(description.block(at), numbers.activation))
            description.forget(at)
        products = chain.from_iterable(layer.products for layer in self._layers)
        self.notes += dict.fromkeys(one.note for one in products if one.note is not None)
        self._attends = [
            AttentionLayer(
                at, numbers.attention_scale, layer.window, softcap=numbers.attention_softcap
            )
            for at, layer in enumerate(self._layers)
        ]
        self._final_norm = description.final_norm()
        ropes = description.ropes
        axes = ropes[0].axes
        self._axes = None if axes is None else axes.to(device)
        self._takes_images = description.takes_images
        self._inserted_scale = description.inserted_scale
        self._n_added = description.n_added
        self._first_position = description.first_position
        self._frequencies = torch.stack([rope.frequencies for rope in ropes]).to(device)
        self._scales = torch.tensor([rope.scale for rope in ropes], device=device)
        held = chain((self._embedding, self._final_norm), self._head.tensors)
        layers = chain.from_iterable(layer.tensors for layer in self._layers)
        each = {x.data_ptr(): x.nbytes for x in chain(held, layers)}
        self.weight_bytes = sum(each.values())

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """See `forward.Model`; logits are float32. An id outside the vocabulary, which only the
        device sees, makes the logits of its row NaN."""
        tokens = batch.text(
            "the fused decoder", inserts=self._takes_images, axes=self._axes is not None
        )
        context = batch.attention
        turns = self._turns(batch.positions)
        residual, x = self._embed(tokens, batch.inserted)
        slots = self.attention.slots(context)
        last = len(self._layers) - 1
        for at, layer in enumerate(self._layers):
            query = self._place(at, layer, x, turns, slots, context.cache)
            mixed = self.attention.forward(self._attends[at], query, None, None, context)
            y = self._summed(layer.out.parts(mixed.view(len(x), -1)))
            x = self._add_norm(residual, y, layer.attention_norm, layer.mlp_norm)
            made: torch.Tensor | None = self._summed(layer.down.parts(layer.gate_up(x)))
            norm = self._final_norm if at == last else self._layers[at + 1].input_norm
            wanted = batch.wanted if at == last else None
            made_norm = layer.mlp_output_norm
            if batch.inserted is not None and at < self._n_added:
                self._add_norm(residual, made, made_norm, norm)
                residual.index_add_(0, batch.inserted.at, self._inserted(batch.inserted, at + 1))
                made, made_norm = None, None
            x = self._add_norm(residual, made, made_norm, norm, wanted)
        logits = self._gathered(self._logits(x))
        return ForwardOutput(logits, x if batch.hidden else None)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `forward.HeadedModel`; float32."""
        x = hidden.to(self._embedding.dtype).contiguous()
        return self._gathered(self._head.whole(x))

    def _turns(self, positions: torch.Tensor) -> Sequence[torch.Tensor]:
        """Return float32 [n_tokens, 2, rotary / 2] of each rope."""
        n_ropes, half = self._frequencies.shape
        n_tokens, stride = positions.shape[-1], 0
        if self._first_position:
            positions = positions + self._first_position
        if positions.dim() > 1:
            positions, stride = positions[self._axes], n_tokens
        turns = self._frequencies.new_empty((n_ropes, n_tokens, 2, half))
        kernels.turn[(n_tokens, n_ropes)](
            turns, positions, self._frequencies, self._scales, stride,
            HALF=half, WIDTH=triton.next_power_of_2(half), num_warps=1,
        )  # fmt: skip
        return turns.unbind()

    def _embed(
        self, ids: torch.Tensor, inserted: Inserted | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the residual stream, and the input of the first layer."""
        numbers = self._numbers
        norm = self._layers[0].input_norm
        residual = norm.new_empty((len(ids), numbers.hidden))
        x = self._embedding.new_empty(residual.shape)
        whole = self._ranks is None and inserted is None
        kernels.embed[(len(ids),)](
            residual, x, ids, self._embedding, norm, numbers.vocabulary.start,
            numbers.vocabulary.size, numbers.vocab_size, numbers.embedding_scale, numbers.eps,
            NORMED=whole, **self._rows,
        )  # fmt: skip
        if whole:
            return residual, x
        if self._ranks is not None:
            self._ranks.all_reduce(residual)
        if inserted is not None:
            rows = self._inserted(inserted, 0) * self._inserted_scale
            residual.index_copy_(0, inserted.at, rows)
        return residual, self._add_norm(residual, None, None, norm)

    def _inserted(self, inserted: Inserted, at: int) -> torch.Tensor:
        """Return float32 [n, hidden]: what stands in the place of embeddings, or behind that what
        is added to what layer `at` - 1 makes."""
        hidden = self._numbers.hidden
        return inserted.rows[:, at * hidden : (at + 1) * hidden].float()

    def _place(
        self,
        at: int,
        layer: _Layer,
        x: torch.Tensor,
        turns: Sequence[torch.Tensor],
        slots: torch.Tensor,
        cache: PagedCache,
    ) -> torch.Tensor:
        """Write keys and values of a normed x [n_tokens, hidden] into the cache, and return the
        queries [1, n_heads, n_tokens, head_dim]."""
        numbers, n_tokens = self._numbers, len(x)
        qkv = layer.qkv.parts(x)
        turn = turns[layer.rope or 0]
        query = x.new_empty((n_tokens, numbers.n_heads, numbers.head_dim))
        n_heads = numbers.n_heads + 2 * numbers.n_kv_heads
        kernels.place[(n_tokens, triton.cdiv(n_heads, HEADS))](
            query,
            cache.keys[at],
            cache.values[at],
            qkv,
            slots,
            turn,
            # Missing tensors are not read; a pointer has to be given all the same.
            turn if layer.head_norms is None else layer.head_norms,
            *code_scales(cache, at, turn),
            numbers.eps,
            n_tokens,
            N_HEADS=numbers.n_heads,
            N_KV_HEADS=numbers.n_kv_heads,
            DIM=numbers.head_dim,
            WIDTH=triton.next_power_of_2(numbers.head_dim),
            BLOCK_SIZE=cache.block_size,
            ROTARY=0 if layer.rope is None else numbers.rotary,
            NORMED=layer.head_norms is not None,
            PARTS=len(qkv),
            HEADS=HEADS,
            CODES=code_number(cache),
        )
        return query.transpose(0, 1).unsqueeze(0)

    def _summed(self, parts: torch.Tensor) -> torch.Tensor:
        """Return the sum over the ranks of [n_parts, n_tokens, hidden], as one part."""
        if self._ranks is None:
            return parts
        own = parts.squeeze(0) if len(parts) == 1 else parts.sum(0)
        return self._ranks.all_reduce(own).unsqueeze(0)

    def _add_norm(
        self,
        residual: torch.Tensor,
        y: torch.Tensor | None,
        y_norm: torch.Tensor | None,
        norm: torch.Tensor,
        wanted: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Add y [n_parts, n_tokens, hidden] to the residual stream, and return the normed input of
        what follows: of all rows or of the wanted ones."""
        n_tokens = len(residual)
        n = n_tokens if wanted is None else len(wanted)
        out = self._embedding.new_empty((n, self._numbers.hidden))
        if n:
            kernels.add_norm[(n,)](
                out,
                residual,
                residual if y is None else y,
                residual if wanted is None else wanted,
                norm if y_norm is None else y_norm,
                norm,
                self._numbers.residual_scale,
                self._numbers.eps,
                n_tokens,
                PARTS=0 if y is None else len(y),
                Y_NORM=y_norm is not None,
                WANTED=wanted is not None,
                **self._rows,
            )
        return out

    def _logits(self, x: torch.Tensor) -> torch.Tensor:
        """Return float32 [n, this rank's part of the vocabulary] of normed rows [n, hidden]."""
        if not len(x):
            return x.new_empty((0, self._head.n), dtype=torch.float32)
        numbers = self._numbers
        logits = self._head.whole(x)
        if numbers.logit_scale != 1.0 or numbers.logit_softcap:
            kernels.bound[(triton.cdiv(logits.numel(), LOGITS),)](
                logits, logits.numel(), numbers.logit_scale, numbers.logit_softcap,
                CAPPED=numbers.logit_softcap != 0.0, SIZE=LOGITS,
            )  # fmt: skip
        return logits

    def _gathered(self, logits: torch.Tensor) -> torch.Tensor:
        if self._ranks is None:
            return logits
        return self._ranks.gather(logits, self._numbers.logit_widths)

    @property
    def _rows(self) -> dict[str, Any]:
        """Return the compile-time sizes of kernels of whole rows."""
        return {"SIZE": self._numbers.hidden, "WIDTH": self._width, "num_warps": self._warps}


def _attention_of(attention: registry.Backend, description: Description) -> AttentionBackend[Any]:
    """Return the attention. Raises NotFused where the decoder, or the attention, does not support
    this model."""
    numbers, dtype = description.numbers, description.dtype
    if dtype not in DTYPES:
        raise NotFused(f"the fused decoder takes {', '.join(map(str, DTYPES))}, not {dtype}")
    if numbers.hidden > MOST_HIDDEN:
        raise NotFused(f"its rows of {numbers.hidden} numbers are longer than {MOST_HIDDEN}")
    if description.bidirectional and attention.causal_only:
        raise NotFused(
            f"parts of its prompts attend in both directions, which {attention.name} attention "
            "does not"
        )
    shape = AttentionShape(numbers.n_heads, numbers.n_kv_heads, numbers.head_dim, dtype)
    if refusal := attention.shape_refusal(shape):
        raise NotFused(f"its attention is not the kernels': {refusal}")
    return attention(shape)


def _layer(block: Block, activation: str) -> _Layer:
    return _Layer(
        qkv=_prepared(block.qkv),
        out=_prepared([block.out]),
        gate_up=_prepared(block.gate_up, activation),
        down=_prepared([block.down]),
        input_norm=block.input_norm,
        head_norms=_head_norms(block.query_norm, block.key_norm),
        attention_norm=block.attention_norm,
        mlp_norm=block.mlp_norm,
        mlp_output_norm=block.mlp_output_norm,
        window=block.window,
        rope=block.rope,
    )


def _prepared(linears: Sequence[Linear], activation: str = "") -> Any:
    """Return a Product of merged layers; with an activation, a GatedProduct of gate and up."""
    weights = [one.checkpoint_weight for one in linears]
    return prepare("triton_linear", linears)(weights, activation)


def _head_norms(query: torch.Tensor | None, key: torch.Tensor | None) -> torch.Tensor | None:
    if query is None or key is None:
        if query is not key:
            raise ValueError("no family norms queries or keys, and not both")
        return None
    return torch.stack((query, key))
