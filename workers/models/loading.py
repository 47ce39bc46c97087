"""A model folder to a model that runs: through the fused decoder, or transformers' own code."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import torch

from tgi_async.cgroups import gigabytes
from tgi_async.wire.messages import ModelConfig
from workers import memory
from workers.attention import registry
from workers.attention.backend import AttentionBackend
from workers.attention.native import NativeAttention
from workers.decoder.families import Description, NotFused
from workers.decoder.native import NativeDecoder
from workers.errors import UnsupportedModel
from workers.forward import ForwardBatch, ForwardOutput, HeadedModel, Vision
from workers.models import rope
from workers.models.pretrained import Pretrained
from workers.models.spec import ModelSpec
from workers.models.transformers_path import TransformersModel
from workers.ranks import Ranks
from workers.vision.families import vision_of


class Loaded(HeadedModel, Protocol):
    """A model, what it says about itself, and what a person should know of it."""

    spec: ModelSpec
    weight_bytes: int
    quantization: str
    """How its weights are quantized, as text; "" for plain ones."""
    notes: list[str]
    vision: Vision | None
    """What it does with images; None: it takes none."""

    @property
    def attention(self) -> AttentionBackend[Any]:
        """What its layers attend by."""
        ...


class FusedDecoder(HeadedModel, Protocol):
    """A fused decoder."""

    weight_bytes: int
    notes: list[str]

    @property
    def attention(self) -> AttentionBackend[Any]:
        """What its layers attend by."""
        ...


MakeDecoder = Callable[[Description, Ranks | None], FusedDecoder]
"""Raises NotFused, with the model that is described as it was."""


class FusedModel:
    """A fused decoder with the weights of a model of transformers."""

    def __init__(self, loaded: Pretrained, make: MakeDecoder) -> None:
        """Raises NotFused, with `loaded` as it was."""
        description = Description(
            loaded.module, loaded.fill, loaded.device, loaded.sharding, loaded.tied
        )
        self._decoder = make(description, loaded.ranks)
        description.forget_rest()
        self.attention = self._decoder.attention
        self.spec = loaded.spec(description.attention, self.attention.shape)
        self.weight_bytes = self._decoder.weight_bytes
        self.quantization = loaded.quantization
        self.notes = list(self._decoder.notes)
        self.vision: Vision | None = vision_of(loaded.module)
        if self.vision is not None:
            decoder = loaded.module.get_decoder()
            self.notes += loaded.complete_beside(decoder)
            self.weight_bytes += loaded.bytes_beside(decoder)
        loaded.weights.release()

    def forward(self, batch: ForwardBatch) -> ForwardOutput:
        """See `forward.Model`, and the decoder for what it raises."""
        return self._decoder.forward(batch)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """See `forward.HeadedModel`."""
        return self._decoder.head(hidden)


def decoder_for(attention: registry.Backend, device: torch.device) -> MakeDecoder:
    """Return the fused decoder of a device that attends by this backend.

    Raises NotFused where there is none.
    """
    if device.type == "cpu" and "cpu" in attention.devices:
        if attention is not NativeAttention:
            refusal = NativeAttention.refusal()
            raise NotFused(refusal or f"it attends by {attention.name}, not by its own kernel in C")
        return NativeDecoder
    # Only a torch built for CUDA brings Triton along.
    from workers.decoder.device import DeviceDecoder

    return partial(DeviceDecoder, attention)


def load(
    config: ModelConfig,
    dtype: torch.dtype,
    device: torch.device,
    ranks: Ranks | None = None,
    attention: registry.Backend | None = None,
    must_fit: bool = False,
    beside: int = 0,
) -> Loaded:
    """Load a model, with `ranks` this rank's part.

    `config.max_total_tokens` is the longest text that is asked for, 0 being the longest that is
    exact; the model's spec says which it is. `attention` defaults to the device's best. With
    `must_fit`, weights for which a CPU has no memory are refused rather than read; `beside` are
    bytes that something else will take.

    Raises UnsupportedModel, or ValueError and OSError for a broken folder.
    """
    max_total_tokens = config.max_total_tokens
    chosen = registry.BackendChoice(attention, []) if attention else registry.choose("auto", device)
    loaded = Pretrained(config, dtype, device, ranks)
    if loaded.codes is not None and not chosen.backend.reads_codes:
        raise UnsupportedModel(
            f"--attention {chosen.backend.name} does not read a KV cache in {loaded.codes.name}, "
            "which --kv-cache-dtype or the checkpoint asks for. Leave --attention out"
        )
    if must_fit and device.type == "cpu":
        _expect_room(loaded.whole_bytes, ranks, beside)
    if loaded.scaling is not None and not max_total_tokens:
        # Longer texts are what it is given for.
        max_total_tokens = rope.limits_of(loaded.module.config).most
    loaded.max_total_tokens, notes = rope.fix(loaded.module, max_total_tokens)
    model = _running(loaded, config.implementation, chosen.backend)
    model.notes += chosen.notes + notes + loaded.weights.notes + loaded.notes
    return model


def _expect_room(size: int, ranks: Ranks | None, beside: int) -> None:
    """Raise UnsupportedModel if weights of `size` bytes, of all ranks together, do not fit in
    memory, rather than let the kernel kill the worker half-way; nor what is to be `beside` them,
    with all that stays free."""
    room = memory.room_on_cpu(swap=not beside)
    # All ranks look before any of them loads.
    least = room.size if ranks is None else ranks.all_reduce_min(room.size)
    if beside:
        least -= beside + memory.OTHERS
    if size > least:
        further = f" beside {gigabytes(beside)} for the worker that serves" if beside else ""
        raise UnsupportedModel(
            f"its weights take {gigabytes(size)}, and there is no room for them{further}: "
            f"{room.because}"
        )


def _running(loaded: Pretrained, implementation: str, attention: registry.Backend) -> Loaded:
    if implementation == "transformers":
        return TransformersModel(loaded, attention)
    try:
        return FusedModel(loaded, decoder_for(attention, loaded.device))
    except NotFused as reason:
        if implementation == "fused":
            raise UnsupportedModel(
                f"the fused decoder does not run it: {reason}. --model-impl auto runs it through "
                "transformers' code"
            ) from reason
        model = TransformersModel(loaded, attention)
        model.notes.append(f"it runs through transformers' code, which is slower: {reason}")
        return model
