"""Any causal language model of transformers whose attention goes through AttentionInterface."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from workers.attention import registry
from workers.attention.context import AttentionContext
from workers.layers.linear import replace_linears


class Unsupported(Exception):
    """This model can not be served; the message says why and what would be nearest."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What the KV cache and the router must know of a model."""

    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    max_total_tokens: int
    eos_token_ids: list[int]


class Pretrained:
    """A model as transformers loads it, its attention being the paged one."""

    def __init__(
        self, path: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
    ) -> None:
        """Raises Unsupported, or ValueError and OSError of transformers for a broken folder."""
        config = _config(path, trust_remote_code)
        self.shape = _shape(path, config)
        shape = self.shape
        self.attention_notes = registry.register(
            shape.n_heads, shape.n_kv_heads, shape.head_dim, dtype, device
        )
        transformers.logging.disable_progress_bar()
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            attn_implementation=registry.NAME,
            trust_remote_code=trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
        )
        if not getattr(model, "_supports_attention_backend", False):
            raise Unsupported(
                f"{config.model_type}: its attention in transformers {transformers.__version__} "
                "does not go through AttentionInterface, which paged attention needs"
            )
        model = model.to(device)  # type: ignore[arg-type]
        self.module = model.eval().requires_grad_(False)


class TransformersModel:
    """transformers' own code over packed tokens and a paged cache. See `runner.Model`."""

    def __init__(self, loaded: Pretrained) -> None:
        self.shape = loaded.shape
        self.module = loaded.module
        self.weight_bytes = sum(one.nbytes for one in self.module.parameters())
        self.notes = loaded.attention_notes + replace_linears(self.module)

    def __call__(
        self,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        logit_positions: torch.Tensor,
        context: AttentionContext,
    ) -> torch.Tensor:
        """See `runner.Model`."""
        output = self.module(
            input_ids=input_ids[None],
            position_ids=position_ids[None],
            use_cache=False,
            logits_to_keep=logit_positions,
            tgi_ctx=context,
        )
        logits: torch.Tensor = output.logits[0]
        return logits


def _config(path: Path, trust_remote_code: bool) -> Any:
    try:
        config = AutoConfig.from_pretrained(
            path, trust_remote_code=trust_remote_code, local_files_only=True
        )
    except (ValueError, KeyError) as error:
        raise Unsupported(
            f"transformers {transformers.__version__} does not know this model: {error}"
        ) from error
    kind = config.model_type
    if config.is_encoder_decoder:
        raise Unsupported(f"{kind} is an encoder-decoder model; only decoder-only ones are served")
    if getattr(config, "quantization_config", None) is not None:
        raise Unsupported(
            "the weights are quantized, which is not served yet; use the unquantized model"
        )
    if getattr(config, "vision_config", None) is not None:
        raise Unsupported(f"{kind} takes images, not served yet; use a text-only model")
    kinds = set(getattr(config, "layer_types", None) or []) - {
        "full_attention",
        "sliding_attention",
    }
    if kinds:
        raise Unsupported(f"{kind} has layers of kind {', '.join(sorted(kinds))}, not served yet")
    return config


def _shape(path: Path, config: Any) -> Shape:
    heads = config.num_attention_heads
    try:
        generation = GenerationConfig.from_pretrained(path, local_files_only=True)
        eos = generation.eos_token_id
    except OSError:
        eos = None
    eos = config.eos_token_id if eos is None else eos
    return Shape(
        n_layers=config.num_hidden_layers,
        n_heads=heads,
        n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        vocab_size=config.vocab_size,
        max_total_tokens=config.max_position_embeddings,
        eos_token_ids=[] if eos is None else [eos] if isinstance(eos, int) else list(eos),
    )
