"""Which families of transformers are one decoder, and how they differ: as data.

All of them norm by root mean square, rotate queries and keys (elements i and i + half paired), and
have a gated MLP. What a family does beyond that is read from its modules in transformers, whose
names are theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import nn

from workers.attention.layer import AttentionSpec, AttentionWindow
from workers.layers.embedding import Embedding
from workers.layers.linear import Linear
from workers.quantization.method import Kernel, Prepare
from workers.quantization.plain import PlainMethod
from workers.slices import Range
from workers.vision.families import BIDIRECTIONAL, FIRST_POSITIONS, takes_images

FAMILIES = frozenset(
    {
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "ministral",
        "mistral",
        "phi3",
        "qwen2",
        "qwen3",
        "seed_oss",
        "smollm3",
    }
)
"""`model_type` of the configs that the fused decoder runs, of a model that takes images that of its
text."""

WITH_IMAGES = frozenset({"qwen2_5_vl_text", "qwen2_vl_text", "qwen3_vl_text"})
"""The same, of the text of models that take images and have no other: with positions of several
axes."""

TAKING_TURNS = frozenset({"qwen3_vl_text"})
"""Families in which frequencies are of each axis in turn, not of one after the other."""

OFFSET_NORMS = frozenset({"gemma", "gemma2", "gemma3_text"})
"""Families whose norms multiply with 1 + weight."""

WINDOW_OF_CONFIG = frozenset({"mistral", "phi3"})
"""Families whose layers all have the config's `sliding_window`."""

ACTIVATIONS = {"silu": "silu", "swish": "silu", "gelu_pytorch_tanh": "gelu_tanh", "gelu": "gelu"}
FIXED_ROPES = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary embedding whose frequencies do not depend on the length of the text."""

N_AXES = 3
"""Of the positions of images: time, height and width."""

Activation = Literal["silu", "gelu_tanh", "gelu"]


class NotFused(Exception):
    """The fused decoder does not run this model; the message says why."""


@dataclass(frozen=True, slots=True)
class Rope:
    """A rotary embedding."""

    frequencies: torch.Tensor
    """float32 [rotary / 2], radians a position."""
    scale: float
    """Of cosine and sine."""
    axes: torch.Tensor | None = None
    """int64 [rotary / 2]: the axis of the positions that each frequency is of; None: there is one.
    """


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. Norms, float32, are what a normed row is multiplied with; None: not there."""

    qkv: list[Linear]
    """Joined already, or the three of them."""
    out: Linear
    gate_up: list[Linear]
    down: Linear
    input_norm: torch.Tensor
    query_norm: torch.Tensor | None
    key_norm: torch.Tensor | None
    attention_norm: torch.Tensor | None
    mlp_norm: torch.Tensor
    mlp_output_norm: torch.Tensor | None
    window: int
    """Positions that are seen, the own one included; 0: all."""
    rope: int | None
    """Which of the decoder's."""


@dataclass(frozen=True, slots=True)
class ModelDims:
    """What is the same in all layers."""

    hidden: int
    intermediate: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    rotary: int
    vocab_size: int
    vocabulary: Range
    """The tokens whose embeddings are here."""
    logit_widths: list[int]
    """How many logits each rank computes."""
    activation: Activation
    eps: float
    attention_scale: float
    attention_softcap: float
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    logit_softcap: float


class RankSlice(Protocol):
    """What of a model one of several ranks has."""

    @property
    def n_heads(self) -> int: ...
    @property
    def n_kv_heads(self) -> int: ...
    @property
    def vocabulary(self) -> Range:
        """The tokens whose embeddings it has."""

    @property
    def logit_widths(self) -> list[int]:
        """How many logits each rank computes."""

    def columns(self, n: int) -> Range:
        """What it has of n columns of an MLP."""


def _there(module: nn.Module, borrow: bool) -> None:
    """For a model whose weights are there already."""


def prepare(kernel: Kernel, layers: Sequence[Linear | Embedding]) -> Prepare:
    """Return what makes merged layers into a kernel's weight. Raises NotFused where there is no
    way."""
    for layer in layers:
        if not isinstance(layer, Linear | Embedding):
            raise NotFused(f"its code reads the weight of a {type(layer).__name__}")
    method = layers[0].method
    if not all(method.merges(layer.method) for layer in layers):
        names = ", ".join(sorted({layer.method.name for layer in layers}))
        raise NotFused(f"it has layers to merge of which each is quantized in its own way: {names}")
    found = method.prepared(kernel, [layer.own_size for layer in layers])
    if found is None:
        raise NotFused(f"weights in {method.name} have no form for the kernel {kernel}")
    return found


class Description:
    """A model of transformers, read as a decoder of ours."""

    def __init__(
        self,
        model: Any,
        fill: Callable[[nn.Module, bool], None] = _there,
        device: torch.device | None = None,
        part: RankSlice | None = None,
        tied: bool = False,
    ) -> None:
        """`model` has layers of ours. `fill` is called with a module before its weights are looked
        at, which are not there until then, and with whether they are only borrowed, to be copied
        where they are kept; they are on `device` afterwards.
        With `part`, its linear layers and its embedding are a rank's. With `tied`, the embedding
        has the head's weight. Raises NotFused."""
        self.takes_images = takes_images(model.config)
        """Whether rows may be inserted in the place of embeddings."""
        config = model.config.get_text_config()
        kind = config.model_type
        if kind not in FAMILIES | WITH_IMAGES:
            raise NotFused(f"{kind} is not among the fused families")
        self.bidirectional = model.config.model_type in BIDIRECTIONAL
        """Whether parts of a prompt may attend in both directions."""
        vision = getattr(model.config, "vision_config", None)
        self.n_added = len(getattr(vision, "deepstack_visual_indexes", None) or ())
        """Of how many layers, the first ones, more rows are added to what they make."""
        self.first_position = FIRST_POSITIONS.get(model.config.model_type, 0)
        """What positions are counted from."""
        activation = getattr(config, "hidden_activation", None) or config.hidden_act
        if activation not in ACTIVATIONS:
            raise NotFused(f"its activation {activation} is not one of {', '.join(ACTIVATIONS)}")
        self._kind = kind
        self._top = model
        self._model = model.get_decoder() if self.takes_images else model.model
        self._fill = fill
        if not isinstance(self._model.embed_tokens, Embedding):
            raise NotFused("its code reads the weight of its embedding")
        self._embedding = self._model.embed_tokens
        self._head: Linear = model.lm_head
        self.tied = tied and not isinstance(self._embedding.method, PlainMethod)
        """Whether rows of the embedding are looked up in the head, which is quantized."""
        self.dtype = self._embedding.dtype
        self.device = device or self._embedding.device
        kinds: Sequence[str | None] = getattr(config, "layer_types", None) or []
        self.ropes, self._rope_of = _ropes(self._model.rotary_emb)
        self._kinds = list(kinds) or [None] * config.num_hidden_layers
        self.n_blocks = len(self._model.layers)
        first = self._model.layers[0]
        attention = first.self_attn
        heads, kv_heads = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
        vocabulary = Range(0, config.vocab_size)
        self.numbers = ModelDims(
            hidden=config.hidden_size,
            intermediate=part.columns(config.intermediate_size).size
            if part
            else config.intermediate_size,
            n_heads=part.n_heads if part else heads,
            n_kv_heads=part.n_kv_heads if part else kv_heads or heads,
            head_dim=attention.head_dim,
            rotary=2 * len(self.ropes[0].frequencies),
            vocab_size=config.vocab_size,
            vocabulary=part.vocabulary if part else vocabulary,
            logit_widths=part.logit_widths if part else [config.vocab_size],
            activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
            eps=config.rms_norm_eps,
            attention_scale=attention.scaling,
            attention_softcap=getattr(config, "attn_logit_softcapping", None) or 0.0,
            embedding_scale=self._embedding_scale(),
            residual_scale=getattr(config, "residual_multiplier", 1.0),
            logit_scale=1.0 / getattr(config, "logits_scaling", 1.0),
            logit_softcap=getattr(config, "final_logit_softcapping", None) or 0.0,
        )
        multiplier = getattr(config, "embedding_multiplier", 1.0)
        self.inserted_scale = float(multiplier) if self._embedding.scale is None else 1.0
        """What inserted rows are multiplied with: by some families all that the layers get, by
        others the embeddings alone."""
        self.attention = [
            AttentionSpec(
                self.numbers.n_heads,
                self.numbers.n_kv_heads,
                self.numbers.head_dim,
                self.numbers.head_dim,
                self.numbers.attention_scale,
                AttentionWindow(self._window(layer.self_attn)),
                self.numbers.attention_softcap,
            )
            for layer in self._model.layers
        ]
        """Of each layer."""

    def expect(self, linear: Kernel, rows: Kernel) -> None:
        """Raises NotFused where a layer has no weight for these kernels."""
        for layer in self._model.layers:
            for group in (*_merged(layer), [layer.self_attn.o_proj], [layer.mlp.down_proj]):
                prepare(linear, group)
        prepare(linear, [self._head])
        prepare(rows, [self._embedding])

    def embedding(self) -> Embedding:
        """With a weight that is to be kept."""
        self._fill(self._embedding, False)
        return self._embedding

    def head(self) -> Linear:
        self._fill(self._head, True)
        return self._head

    def final_norm(self) -> torch.Tensor:
        self._fill(self._model.norm, True)
        return self._norm(self._model.norm)

    def block(self, at: int) -> Block:
        """Layer `at`; `forget` it when its weights were copied."""
        layer = self._model.layers[at]
        self._fill(layer, True)
        attention = layer.self_attn
        sandwich = hasattr(layer, "pre_feedforward_layernorm")
        rope = self._rope_of.get(self._kinds[at], 0)
        qkv, gate_up = _merged(layer)
        return Block(
            qkv=qkv,
            out=attention.o_proj,
            gate_up=gate_up,
            down=layer.mlp.down_proj,
            input_norm=self._norm(layer.input_layernorm),
            query_norm=self._norm(attention.q_norm) if hasattr(attention, "q_norm") else None,
            key_norm=self._norm(attention.k_norm) if hasattr(attention, "k_norm") else None,
            attention_norm=self._norm(layer.post_attention_layernorm) if sandwich else None,
            mlp_norm=self._norm(
                layer.pre_feedforward_layernorm if sandwich else layer.post_attention_layernorm
            ),
            mlp_output_norm=self._norm(layer.post_feedforward_layernorm) if sandwich else None,
            window=self.attention[at].window.window,
            rope=rope if getattr(attention, "use_rope", True) else None,
        )

    def forget_head(self) -> None:
        """As `forget`."""
        self._top.lm_head = nn.Identity()

    def forget(self, at: int) -> None:
        """Drop layer `at` of the model in transformers, so that its weights are not kept twice."""
        self._model.layers[at] = nn.Identity()

    def forget_rest(self) -> None:
        """As `forget`, of what is not in layers, once all of them are forgotten."""
        self._model.embed_tokens = self._model.norm = nn.Identity()

    def _norm(self, module: Any) -> torch.Tensor:
        weight: torch.Tensor = module.weight.detach().float()
        # Always a copy: the weight may be a view of the mapped file.
        return weight + 1.0 if self._kind in OFFSET_NORMS else weight.clone()

    def _window(self, attention: Any) -> int:
        owner = self._model.config if self._kind in WINDOW_OF_CONFIG else attention
        return getattr(owner, "sliding_window", None) or 0

    def _embedding_scale(self) -> float:
        if self._embedding.scale is not None:
            return self._embedding.scale
        return float(getattr(self._model.config, "embedding_multiplier", 1.0))


def _merged(layer: Any) -> tuple[list[Linear], list[Linear]]:
    """Queries, keys and values, and gate and up: joined already, or each by itself."""
    attention, mlp = layer.self_attn, layer.mlp
    qkv = (
        [attention.qkv_proj]
        if hasattr(attention, "qkv_proj")
        else [attention.q_proj, attention.k_proj, attention.v_proj]
    )
    gate_up = [mlp.gate_up_proj] if hasattr(mlp, "gate_up_proj") else [mlp.gate_proj, mlp.up_proj]
    return qkv, gate_up


def _ropes(module: Any) -> tuple[list[Rope], dict[str | None, int]]:
    """The rotary embeddings of a model, and which kind of layer has which where there are more."""
    types = module.rope_type if isinstance(module.rope_type, dict) else {None: module.rope_type}
    for rope_type in types.values():
        if rope_type not in FIXED_ROPES:
            raise NotFused(f"its rotary embedding is of type {rope_type}")
    ropes: list[Rope] = []
    places: dict[str | None, int] = {}
    for kind in types:
        prefix = f"{kind}_" if kind else ""
        frequencies = getattr(module, f"{prefix}inv_freq").detach().float().cpu().contiguous()
        places[kind] = len(ropes)
        scale = float(getattr(module, f"{prefix}attention_scaling"))
        ropes.append(Rope(frequencies, scale, _axes(module, len(frequencies))))
    return ropes, places


def _axes(module: Any, n: int) -> torch.Tensor | None:
    """Return the axis of each frequency, where a family has positions of several.

    Raises NotFused for a config that does not say so of all of them."""
    config: Any = getattr(module, "config", None)
    kind = getattr(config, "model_type", "")
    if kind not in WITH_IMAGES:
        return None
    sections = getattr(module, "mrope_section", None) or config.rope_parameters.get("mrope_section")
    if not sections or sum(sections) != n or len(sections) != N_AXES:
        raise NotFused(f"its rotary embedding has {n} frequencies in sections of {sections}")
    if kind not in TAKING_TURNS:
        return torch.arange(N_AXES).repeat_interleave(torch.tensor(sections))
    axes = torch.zeros(n, dtype=torch.int64)
    for axis in range(1, N_AXES):
        axes[axis : N_AXES * sections[axis] : N_AXES] = axis
    return axes
