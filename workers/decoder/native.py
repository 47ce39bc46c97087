"""The fused decoder on a CPU: one call of decoder.c a forward pass."""

from __future__ import annotations

import ctypes

import torch

from workers import native
from workers.attention.cache import PagedCache
from workers.attention.layer import AttentionShape
from workers.attention.native import CodesStruct, NativeAttention
from workers.decoder.families import Block, Description, NotFused, prepare
from workers.forward import ForwardBatch, ForwardOutput, Inserted
from workers.kernels.codes import PackedCodes
from workers.kernels.packed import ACTIVATIONS, PackedWeight, Weight
from workers.layers.linear import Linear
from workers.native import NativeUnavailable
from workers.ranks import Ranks

MOST_ROPES = 2
BAD_ID = 2

_POINTER, _INTEGER, _FLOAT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double


class _Block(ctypes.Structure):
    """`block` of decoder.c, field by field."""

    _fields_ = (
        *((name, Weight) for name in ("qkv", "out", "gate_up", "down")),
        *((name, _POINTER) for name in ("input_norm", "query_norm", "key_norm")),
        *((name, _POINTER) for name in ("attention_norm", "mlp_norm", "mlp_output_norm")),
        *((name, _POINTER) for name in ("keys", "values")),
        ("codes", CodesStruct),
        *((name, _INTEGER) for name in ("window", "rope")),
    )


class _Decoder(ctypes.Structure):
    """`decoder` of decoder.c, field by field."""

    _fields_ = (
        ("embedding", _POINTER),
        ("coded_embedding", _POINTER),
        ("blocks", _POINTER),
        ("final_norm", _POINTER),
        ("head", Weight),
        ("frequencies", _POINTER * MOST_ROPES),
        ("rope_scales", _FLOAT * MOST_ROPES),
        *((name, _INTEGER) for name in ("n_blocks", "n_ropes", "hidden", "intermediate")),
        *((name, _INTEGER) for name in ("n_heads", "n_kv_heads", "head_dim", "rotary")),
        *((name, _INTEGER) for name in ("vocab_size", "n_logits", "first_embedded", "n_embedded")),
        *((name, _INTEGER) for name in ("activation", "bf16")),
        *((name, _FLOAT) for name in ("eps", "attention_scale", "attention_softcap")),
        *((name, _FLOAT) for name in ("embedding_scale", "residual_scale")),
        *((name, _FLOAT) for name in ("logit_scale", "logit_softcap")),
    )


class _Step(ctypes.Structure):
    """`step` of decoder.c, field by field."""

    _fields_ = (
        *((name, _POINTER) for name in ("ids", "positions", "slots", "spans", "wanted", "logits")),
        *((name, _POINTER) for name in ("inserted_at", "inserted", "each", "hidden", "partial")),
        *((name, _INTEGER) for name in ("n_tokens", "n_spans", "n_wanted", "n_inserted")),
        ("n_added", _INTEGER),
        *((name, _INTEGER) for name in ("block_size", "n_threads", "stage")),
    )


class NativeDecoder:
    """A model over packed tokens and a paged cache, in C. See `forward.Model`."""

    def __init__(self, description: Description, ranks: Ranks | None = None) -> None:
        """Take the weights out of the described model, layer by layer; with `ranks`, the
        description is of this rank's part.

        Raises NotFused, with the model as it was.
        """
        numbers = description.numbers
        self._ranks = ranks
        self.notes: list[str] = []
        """What was given up, for the log."""
        self._run, self.attention = _function(description)
        description.expect("c_linear", "c_rows")
        self._kept: list[object] = []
        """Objects that the structures point to."""
        self.weight_bytes = 0
        embedding = None if description.tied else self._rows(description)
        # Before the layers, for it is large, and so is what it is made from.
        self._head = self._packed([description.head()])
        head = self._head.struct
        if description.tied:
            embedding = head
        description.forget_head()
        self._blocks = (_Block * description.n_blocks)()
        for at in range(description.n_blocks):
            block = description.block(at)
            self._fill(self._blocks[at], block, description)
            del block
            description.forget(at)
        self._cache: PagedCache | None = None
        self._vocab_size = numbers.vocab_size
        self._takes_images = description.takes_images
        self._inserted_scale = description.inserted_scale
        self._n_added = description.n_added
        self._axes = description.ropes[0].axes
        self._first_position = description.first_position
        self._logit_widths = numbers.logit_widths
        ropes = description.ropes
        self._decoder = _Decoder(
            embedding=None if isinstance(embedding, Weight) else embedding,
            coded_embedding=ctypes.addressof(embedding) if isinstance(embedding, Weight) else None,
            blocks=ctypes.addressof(self._blocks),
            final_norm=self._keep(description.final_norm()),
            head=head,
            frequencies=(_POINTER * MOST_ROPES)(*(self._keep(x.frequencies) for x in ropes)),
            rope_scales=(_FLOAT * MOST_ROPES)(*(x.scale for x in ropes)),
            n_blocks=description.n_blocks,
            n_ropes=len(ropes),
            hidden=numbers.hidden,
            intermediate=numbers.intermediate,
            n_heads=numbers.n_heads,
            n_kv_heads=numbers.n_kv_heads,
            head_dim=numbers.head_dim,
            rotary=numbers.rotary,
            vocab_size=numbers.vocab_size,
            n_logits=self._logit_widths[ranks.rank if ranks else 0],
            first_embedded=numbers.vocabulary.start,
            n_embedded=numbers.vocabulary.size,
            activation=ACTIVATIONS[numbers.activation],
            bf16=description.dtype is torch.bfloat16,
            eps=numbers.eps,
            attention_scale=numbers.attention_scale,
            attention_softcap=numbers.attention_softcap,
            embedding_scale=numbers.embedding_scale,
            residual_scale=numbers.residual_scale,
            logit_scale=numbers.logit_scale,
            logit_softcap=numbers.logit_softcap,
        )

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """See `forward.Model`; logits are float32. Raises MemoryError, and ValueError for an id
        outside the vocabulary."""
        tokens = batch.text(
            "the fused decoder", inserts=self._takes_images, axes=self._axes is not None
        )
        wanted, context = batch.wanted, batch.attention
        if context.cache is not self._cache:
            self._use(context.cache)
        spans = self.attention.metadata(context)
        logits = torch.empty(len(wanted), self._decoder.n_logits)
        hidden: torch.Tensor | None = None
        if batch.hidden:
            hidden = torch.empty(len(wanted), self._decoder.hidden, dtype=self._head.dtype)
        at, rows = self._inserted(batch.inserted, len(tokens))
        positions, each = batch.positions, None
        if self._first_position:
            positions = positions + self._first_position
        if positions.dim() > 1:
            each = positions[self._axes]
        step = _Step(
            tokens.data_ptr(),
            positions.data_ptr(),
            context.slot_mapping.data_ptr(),
            spans.data_ptr(),
            wanted.data_ptr(),
            logits.data_ptr(),
            at.data_ptr(),
            rows.data_ptr(),
            None if each is None else each.data_ptr(),
            None if hidden is None else hidden.data_ptr(),
            None,
            len(tokens),
            len(spans),
            len(wanted),
            len(at),
            self._n_added if len(at) else 0,
            context.cache.block_size,
            torch.get_num_threads(),
            0,
        )
        if self._ranks is None:
            failed = self._run(self._decoder, step)
        else:
            failed = self._run_together(step, self._ranks)
        if failed == BAD_ID:
            raise ValueError(
                f"token ids are 0 to {self._vocab_size - 1}, got {int(tokens.min())} to "
                f"{int(tokens.max())}"
            )
        if failed:
            raise MemoryError(f"no memory for a forward pass of {len(tokens)} tokens")
        if self._ranks is not None:
            logits = self._ranks.gather(logits, self._logit_widths)
        return ForwardOutput(logits, hidden)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `forward.HeadedModel`."""
        scores = self._head.apply(hidden.to(self._head.dtype))
        return scores if self._ranks is None else self._ranks.gather(scores, self._logit_widths)

    def _inserted(
        self, inserted: Inserted | None, n_tokens: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return int64 [n] tokens and float32 [n, hidden] rows, or wider ones where layers add more
        of them. Raises ValueError for some that the kernel cannot put there."""
        hidden = self._decoder.hidden * (1 + self._n_added)
        if inserted is None:
            return torch.empty(0, dtype=torch.int64), torch.empty(0, hidden)
        at, rows = inserted.at.contiguous(), inserted.rows.float().contiguous()
        if rows.shape != (len(at), hidden) or at.dtype != torch.int64:
            raise ValueError(
                f"{list(rows.shape)} numbers do not fit in the place of {len(at)} embeddings of "
                f"{hidden}"
            )
        if len(at) and not 0 <= int(at.min()) <= int(at.max()) < n_tokens:
            raise ValueError(f"embeddings of {n_tokens} tokens are 0 to {n_tokens - 1}")
        return at, rows if self._inserted_scale == 1.0 else rows * self._inserted_scale

    def _run_together(self, step: _Step, ranks: Ranks) -> int:
        """Run stage by stage, each but the last ending in a sum over the ranks."""
        partial = torch.empty(step.n_tokens, self._decoder.hidden)
        step.partial = partial.data_ptr()
        last = 2 * self._decoder.n_blocks + 1
        for step.stage in range(last + 1):
            failed: int = self._run(self._decoder, step)
            if failed:
                return failed
            if step.stage < last:
                ranks.all_reduce(partial)
        return 0

    def _use(self, cache: PagedCache) -> None:
        for at, (block, (keys, values)) in enumerate(
            zip(self._blocks, cache.pointers, strict=True)
        ):
            block.keys, block.values = keys, values
            block.codes = CodesStruct.of(cache, at)
        self._cache = cache

    def _fill(self, filled: _Block, block: Block, description: Description) -> None:
        filled.qkv = self._weight(block.qkv)
        filled.out = self._weight([block.out])
        filled.gate_up = self._weight(block.gate_up, description.numbers.activation)
        filled.down = self._weight([block.down])
        filled.input_norm = self._keep(block.input_norm)
        filled.query_norm = self._keep(block.query_norm)
        filled.key_norm = self._keep(block.key_norm)
        filled.attention_norm = self._keep(block.attention_norm)
        filled.mlp_norm = self._keep(block.mlp_norm)
        filled.mlp_output_norm = self._keep(block.mlp_output_norm)
        filled.window = block.window
        filled.rope = -1 if block.rope is None else block.rope

    def _rows(self, description: Description) -> Weight | int | None:
        """Return the embedding: a tensor's address, or a weight of codes."""
        embedding = description.embedding()
        found = prepare("c_rows", [embedding])([embedding.checkpoint_weight], "")
        if isinstance(found, torch.Tensor):
            return self._keep(found)
        coded: PackedCodes = found
        self._kept.append(coded)
        self.weight_bytes += coded.bytes
        return coded.struct

    def _weight(self, linears: list[Linear], activation: str = "") -> Weight:
        """Return the weight of merged layers; with an activation, they are gate and up."""
        return self._packed(linears, activation).struct

    def _packed(self, linears: list[Linear], activation: str = "") -> PackedWeight | PackedCodes:
        weights = [one.checkpoint_weight for one in linears]
        packed: PackedWeight | PackedCodes = prepare("c_linear", linears)(weights, activation)
        self._kept.append(packed)
        self.weight_bytes += packed.bytes
        if packed.note and packed.note not in self.notes:
            self.notes.append(packed.note)
        return packed

    def _keep(self, tensor: torch.Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._kept.append(tensor)
        self.weight_bytes += tensor.nbytes
        return tensor.data_ptr()


def _function(description: Description) -> tuple[ctypes._NamedFuncPointer, NativeAttention]:
    """Return `decoder_run`, and the attention whose metadata it reads. Raises NotFused where it is
    not available or does not support this model."""
    numbers, dtype = description.numbers, description.dtype
    if description.device.type != "cpu":
        raise NotFused(f"the fused decoder runs on a CPU, not on {description.device}")
    shape = AttentionShape(numbers.n_heads, numbers.n_kv_heads, numbers.head_dim, dtype)
    refusal = NativeAttention.shape_refusal(shape)
    if refusal:
        raise NotFused(f"its attention is not the kernel's: {refusal}")
    if numbers.hidden % 2 or numbers.intermediate % 2:
        raise NotFused(f"its sizes {numbers.hidden} and {numbers.intermediate} are not even")
    if len(description.ropes) > MOST_ROPES:
        raise NotFused(f"it has {len(description.ropes)} rotary embeddings, not {MOST_ROPES}")
    try:
        run, attention = native.kernels().decoder_run, NativeAttention(shape)
    except NativeUnavailable as error:
        raise NotFused(str(error)) from error
    run.argtypes = (ctypes.POINTER(_Decoder), ctypes.POINTER(_Step))
    run.restype = ctypes.c_int
    return run, attention
