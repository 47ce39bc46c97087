"""Any causal language model of transformers whose attention goes through AttentionInterface."""

from __future__ import annotations

import torch

from workers.attention.context import AttentionContext
from workers.layers.linear import replace_linears
from workers.models.pretrained import Pretrained


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
