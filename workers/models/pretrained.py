"""A model as transformers builds and loads it, its attention being the paged one."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM

from workers.attention import registry
from workers.models.description import Unsupported, read_config, shape_of


class Pretrained:
    """A model as transformers loads it, its attention being the paged one."""

    def __init__(
        self, path: Path, dtype: torch.dtype, device: torch.device, trust_remote_code: bool
    ) -> None:
        """Raises Unsupported, or ValueError and OSError of transformers for a broken folder."""
        config = read_config(path, trust_remote_code)
        self.shape = shape_of(path, config)
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
