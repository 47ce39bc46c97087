"""A model as transformers builds it, its attention being the paged one, its weights read by us."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM

from workers.layers.linear import Linear, replace_linears, stays_plain
from workers.models import attention_patches
from workers.models.checkpoint import Checkpoint
from workers.models.description import read_config, shape_of
from workers.models.rope import Scaling
from workers.models.sharding import Sharding
from workers.models.weights import Weights, put
from workers.ranks import Ranks


class Pretrained:
    """A model without numbers, and what gives them to it: to a layer (`fill`), or to all of it
    (`complete`)."""

    def __init__(
        self,
        path: Path,
        dtype: torch.dtype,
        device: torch.device,
        trust_remote_code: bool,
        ranks: Ranks | None = None,
        scaling: Scaling | None = None,
    ) -> None:
        """With `ranks`, this rank's part of the model; `scaling` in the place of the config's.

        Raises Unsupported, or ValueError and OSError for a broken folder.
        """
        config = read_config(path, trust_remote_code, scaling)
        self.shape = shape_of(path, config)
        self.dtype, self.device, self.ranks = dtype, device, ranks
        self.module = _on_meta(config, dtype, trust_remote_code)
        tensors = {id(one): one for one in self.module.state_dict(keep_vars=True).values()}
        self.whole_bytes = sum(one.nbytes for one in tensors.values())
        """Of the parameters on all ranks."""
        self.weights = Weights(self.module, Checkpoint(path), dtype, device)
        _compute_buffers(self.module, self.weights, device)
        self.sharding: Sharding | None = None
        if ranks is not None:
            self.sharding = Sharding(self.module, self.shape, ranks)
            self.weights.slices = self.sharding.slices
            self.shape = replace(
                self.shape, n_heads=self.sharding.n_heads, n_kv_heads=self.sharding.n_kv_heads
            )

    def fill(self, module: nn.Module, borrow: bool) -> None:
        """Give a module of the model its numbers; borrowed ones are to be copied where they are
        kept."""
        self.weights.release()
        self.weights.fill(module, borrow=borrow)

    def complete(self) -> list[str]:
        """Give the whole model its numbers, its linear layers in the form that is fastest, and say
        what was given up."""
        # What is packed is read straight from the file.
        borrow = not stays_plain(self.device, self.dtype)
        notes = replace_linears(self.module, lambda one: self.weights.fill(one, borrow=borrow))
        self.weights.fill(self.module)
        self.weights.release()
        if self.sharding is not None:
            self.sharding.join(self.module)
        return notes

    @property
    def weight_bytes(self) -> int:
        """What the parameters of a complete model take."""
        held = list(self.module.parameters())
        for one in self.module.modules():
            held += one.tensors if isinstance(one, Linear) else []
        return sum({_place(one): one.nbytes for one in held}.values())


def _place(tensor: torch.Tensor) -> int:
    """Return a number that tensors share if they share memory; those in oneDNN's order never do."""
    return tensor.data_ptr() if tensor.layout is torch.strided else id(tensor)


def _on_meta(config: Any, dtype: torch.dtype, trust_remote_code: bool) -> Any:
    """The model of a config, every tensor of it without memory."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=dtype,
            attn_implementation=attention_patches.built_with(config.model_type),
            trust_remote_code=trust_remote_code,
        )
    return model.eval().requires_grad_(False)


def _compute_buffers(model: Any, weights: Weights, device: torch.device) -> None:
    """The buffers that no checkpoint has, such as rotary frequencies, and what transformers lets
    a checkpoint lack: by the model's own initialization, on the CPU as in transformers."""
    for name, one in model.state_dict(keep_vars=True).items():
        one._is_hf_initialized = weights.has(name)
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
