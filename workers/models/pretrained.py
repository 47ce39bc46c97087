"""A model as transformers builds it, its attention being the paged one, its weights read by us."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tgi_async.wire.messages import ModelConfig
from workers.attention.cache import CacheSpec
from workers.attention.kv_codes import E4M3, UNSCALED
from workers.attention.layer import AttentionShape, AttentionSpec
from workers.errors import UnsupportedModel
from workers.kernels.codes import PackedCodes
from workers.layers.embedding import Embedding
from workers.layers.experts import QuantizedExperts
from workers.layers.layer import Layer
from workers.layers.linear import Linear
from workers.layers.replace import Replacements, StoredLayers
from workers.models import attention_patches
from workers.models.checkpoint import Checkpoint
from workers.models.description import read_config, sizes_of
from workers.models.eos import eos_token_ids
from workers.models.kv_scales import codes_of, take_scales
from workers.models.matching import expert_names, stored_layers
from workers.models.quantization_settings import quantization_settings, without_settings
from workers.models.rope import Scaling, limits_of
from workers.models.sharding import Sharding
from workers.models.spec import LayerSpec, ModelSpec
from workers.models.weights import Weights, put
from workers.quantization import registry
from workers.quantization.method import QuantMethod, QuantWeight
from workers.ranks import Ranks
from workers.vision.families import attend_by_spans, layer_prefixes, takes_images


class Pretrained:
    """A model without numbers, and what gives them to it: to a layer (`fill`), or to all of it
    (`complete`)."""

    def __init__(
        self,
        given: ModelConfig,
        dtype: torch.dtype,
        device: torch.device,
        ranks: Ranks | None = None,
    ) -> None:
        """With `ranks`, this rank's part of the model.

        Raises UnsupportedModel, or ValueError and OSError for a broken folder.
        """
        path, trust_remote_code = Path(given.path), given.trust_remote_code
        self.scaling = (
            Scaling(given.rope_scaling, given.rope_factor) if given.rope_scaling else None
        )
        """In the place of the config's."""
        config = read_config(path, trust_remote_code, self.scaling)
        text = config.get_text_config()
        self.vocab_size: int = text.vocab_size + getattr(text, "additional_vocab_size", 0)
        self.max_total_tokens = limits_of(config).exact
        """Longest text."""
        self.eos_token_ids = eos_token_ids(path, config)
        checkpoint = Checkpoint(path)
        settings = quantization_settings(path, config, checkpoint)
        self.method = registry.method_of(settings, given.quantize)
        without_settings(config)
        self.codes, self.notes = codes_of(given.kv_cache_dtype, settings)
        """What keys and values are stored as, and what a person should know of it."""
        self._kv_scales = take_scales(checkpoint) if self.codes is E4M3 else {}
        self._round_activations = given.round_activations
        if given.round_activations:
            _expect_codes(self.method, dtype, device)
        self.dtype, self.device, self.ranks = dtype, device, ranks
        self.module = on_meta(config, dtype, trust_remote_code)
        head = self.module.get_output_embeddings()
        self.hidden_size: int = (
            head.in_features
            if isinstance(head, nn.Linear)
            else config.get_text_config().hidden_size
        )
        """Of what the language-model head takes."""
        stored = None if settings is None else stored_layers(self.module, checkpoint)
        ours = Replacements(
            self.module,
            device,
            self.method,
            expert_names(self.module),
            stored,
            within=layer_prefixes(self.module),
        )
        if stored is not None:
            _expect_quantized(self.module, self.method, stored, ours)
        for layer in ours.layers.values():
            if isinstance(layer, Linear):
                layer.round_activations = given.round_activations
        self.weights = Weights(self.module, checkpoint, dtype, device, ours.layers, ours.modules)
        self.whole_bytes = self.weights.matching.whole_bytes
        """Of the parameters on all ranks."""
        compute_buffers(self.module, self.weights, device)
        self.sharding: Sharding | None = None
        if ranks is not None:
            self.sharding = Sharding(self.module, sizes_of(config), ranks, ours.modules)
            self.weights.slices = self.sharding.slices
        ours.put()

    def fill(self, module: nn.Module, borrow: bool) -> None:
        """Give a module of the model its numbers; borrowed ones are to be copied where they are
        kept."""
        self.weights.release()
        self.weights.fill(module, borrow=borrow)

    def complete(self) -> list[str]:
        """Give the whole model its numbers, its linear layers in the form that is fastest, and say
        what was given up."""
        self._share_tied()
        notes = self._settle(frozenset())
        if self.sharding is not None:
            self.sharding.join(self.module)
        return notes

    def complete_beside(self, decoder: nn.Module) -> list[str]:
        """As `complete`, of what is left beside a decoder whose weights were taken, and its head's:
        what encodes images."""
        return self._settle(frozenset(decoder.modules()))

    def _settle(self, without: frozenset[nn.Module]) -> list[str]:
        notes: list[str] = []
        for layer in self.module.modules():
            if not isinstance(layer, Layer) or layer in without:
                continue
            # What is copied into another form is read straight from the file.
            self.weights.fill(layer, borrow=layer.borrows)
            layer.settle()
            notes += [layer.note] if layer.note and layer.note not in notes else []
        self.weights.fill(self.module, without=without)
        self.weights.release()
        return notes

    def spec(self, layers: Sequence[AttentionSpec], shape: AttentionShape) -> ModelSpec:
        """Return what the model says about itself, where its layers attend like this and all of
        them keep what `shape` says."""
        cache = CacheSpec(shape.n_kv_heads, shape.head_dim, self.dtype, codes=self.codes)
        scales = [self._kv_scales.get(at, UNSCALED) for at in range(len(layers))]
        without = sum(at not in self._kv_scales for at in range(len(layers)))
        if self.codes is E4M3 and without:
            self.notes.append(
                f"the checkpoint has no scales for the KV cache of {without} of {len(layers)} "
                "layers: theirs are 1"
            )
        return ModelSpec(
            tuple(LayerSpec(layer, cache, one) for layer, one in zip(layers, scales, strict=True)),
            self.vocab_size,
            self.max_total_tokens,
            self.eos_token_ids,
            self.hidden_size,
        )

    def _share_tied(self) -> None:
        """Have the embedding look up rows in the weight of a head that is the same, where that can
        do both."""
        if not self.tied:
            return
        embedding, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        self.weights.fill(head, borrow=head.borrows)
        head.settle()
        if isinstance(head.weight, QuantWeight | PackedCodes):
            embedding.share(head.weight)

    @property
    def tied(self) -> bool:
        """Whether head and embedding have one weight, and of several ranks each the same part."""
        names = {id(layer): name for name, layer in self.module.named_modules()}
        embedding, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        if not isinstance(embedding, Embedding) or not isinstance(head, Linear):
            return False
        pair = names[id(embedding)], names[id(head)]
        ties = self.weights.matching.ties
        alike = embedding.method is head.method and embedding.style.cut == head.style.cut
        return alike and (ties(*pair) or ties(*pair[::-1]))

    @property
    def quantization(self) -> str:
        """How the weights are quantized, as text; "" for plain ones."""
        if self.method is registry.PLAIN:
            return ""
        text, more = self.method.describe(), ", activations in int8"
        return text + more if self._round_activations and more not in text else text

    @property
    def weight_bytes(self) -> int:
        """What the parameters of a complete model take."""
        return self.bytes_beside(None)

    def bytes_beside(self, decoder: nn.Module | None) -> int:
        """Return what the parameters take that are not in a decoder."""
        without = set() if decoder is None else set(decoder.modules())
        held: list[torch.Tensor] = []
        for one in self.module.modules():
            if one not in without:
                held += one.parameters(recurse=False)
                held += one.tensors if isinstance(one, Layer) else []
        return sum({_place(one): one.nbytes for one in held}.values())


def _expect_codes(method: QuantMethod, dtype: torch.dtype, device: torch.device) -> None:
    """Raises UnsupportedModel where activations cannot be rounded to int8."""
    if device.type != "cpu" or dtype is not torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise UnsupportedModel(
            f"--cpu-activations int8 is for models on a CPU in bfloat16, and this one is on "
            f"{device} in {name}: leave it out" + (", or --dtype" if device.type == "cpu" else "")
        )
    if method is registry.PLAIN:
        raise UnsupportedModel(
            "--cpu-activations int8 is for quantized weights, and those of this model are not: use "
            "--quantize int8 (or int4), which has activations in int8 too"
        )
    if not method.in_integers:
        raise UnsupportedModel(
            "--cpu-activations int8 is for weights that are integers times a scale, and those of "
            f"this model are in {method.describe()}: leave it out"
        )


def _expect_quantized(
    model: Any, method: QuantMethod, stored: StoredLayers, ours: Replacements
) -> None:
    """Raises UnsupportedModel where a checkpoint has nothing in its method, or something that is no
    layer of ours."""
    for name, module in model.named_modules():
        matrices = [one for one in module.parameters(recurse=False) if one.dim() > 1]
        if matrices and name in stored.quantized and name not in ours.modules:
            raise UnsupportedModel(
                f"{name} is quantized in the checkpoint, which is not served for a "
                f"{type(module).__name__} yet; use the unquantized model"
            )
    kinds = Linear | Embedding | QuantizedExperts
    methods = [one.method for one in ours.layers.values() if isinstance(one, kinds)]
    if all(method is registry.PLAIN for method in methods):
        raise UnsupportedModel(
            f"its config says that the weights are in {method.describe()}, and the checkpoint has "
            "none that are: take quantization_config out of config.json, or get the checkpoint "
            "again"
        )


def _place(tensor: torch.Tensor) -> int:
    """Return a number that tensors share if they share memory; those in oneDNN's order never do."""
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def on_meta(
    config: Any, dtype: torch.dtype, trust_remote_code: bool, attention: str | None = None
) -> Any:
    """The model of a config, every tensor of it without memory. It attends over pages, if
    `attention` names no other of transformers' ways; what encodes images attends by torch's own."""
    kind = config.get_text_config().model_type
    ways: Any = attention or attention_patches.built_with(kind)
    auto: Any = AutoModelForCausalLM
    if takes_images(config):
        own = "" if config.get_text_config() is config else "text_config"
        auto, ways = AutoModelForImageTextToText, {own: ways}
        attend_by_spans(config)
    with torch.device("meta"):
        model = auto.from_config(
            config, dtype=dtype, attn_implementation=ways, trust_remote_code=trust_remote_code
        )
    return model.eval().requires_grad_(False)


def compute_buffers(model: Any, weights: Weights, device: torch.device) -> None:
    """The buffers that no checkpoint has, such as rotary frequencies, and what transformers lets
    a checkpoint lack: by the model's own initialization, on the CPU as in transformers."""
    for name, one in model.state_dict(keep_vars=True).items():
        one._is_hf_initialized = not weights.matching.lacks(name)
    computed: list[tuple[nn.Module, str]] = []
    for module in model.modules():
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for leaf, old in list(own):
            if not getattr(old, "_is_hf_initialized", False):
                put(module, leaf, torch.empty_like(old, device="cpu"))
                computed.append((module, leaf))
    model.initialize_weights()
    for module, leaf in computed:
        put(module, leaf, getattr(module, leaf).detach().to(device))
