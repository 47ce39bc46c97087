"""Draft models that have learnt some texts of a model, so that many of their drafts are right."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.functional import gelu, one_hot, rms_norm, silu

from tests.helpers.tiny_drafts import Tensors
from workers.attention.context import AttentionContext, Prefill
from workers.forward import ForwardBatch
from workers.models.loading import Loaded

BLOCK_SIZE = 4


class Text(NamedTuple):
    tokens: torch.Tensor
    """int64 [n]"""
    hidden: torch.Tensor
    """[n, hidden]"""


@torch.inference_mode()
def texts_of(model: Loaded, texts: Sequence[list[int]]) -> list[Text]:
    """Compute each of these texts, prompts included, by itself."""
    found = []
    for text in texts:
        at, n_blocks = torch.arange(len(text)), -(-len(text) // BLOCK_SIZE)
        cache = model.spec.cache_group.pool(n_blocks, BLOCK_SIZE)
        prefill = Prefill(0, len(text), len(text), torch.arange(n_blocks, dtype=torch.int32))
        none = torch.empty(0, dtype=torch.int32)
        context = AttentionContext(cache, at, 0, none.reshape(0, 0), none, [prefill])
        tokens = torch.tensor(text)
        hidden = model.forward(ForwardBatch(tokens, at, at, context, hidden=True)).hidden_states
        assert hidden is not None
        found.append(Text(tokens, hidden))
    return found


def teach_medusa(config: dict[str, Any], tensors: Tensors, texts: Sequence[Text]) -> Tensors:
    """Return the heads of Medusa v1 with matrices that fit these texts best."""
    n_layers = config["medusa_num_layers"]
    vocabulary = len(tensors[f"0.{n_layers}.weight"])
    taught = dict(tensors)
    for at in range(config["medusa_num_heads"]):
        pairs = []
        for tokens, hidden in texts:
            x = hidden[: len(tokens) - 2 - at].float()
            for layer in range(n_layers):
                name = f"{at}.{layer}.linear"
                x = x + silu(x @ tensors[f"{name}.weight"].t() + tensors[f"{name}.bias"])
            pairs.append((x, tokens[2 + at :]))
        taught[f"{at}.{n_layers}.weight"] = _fitting(pairs, vocabulary)
    return taught


def teach_mlp(config: dict[str, Any], tensors: Tensors, texts: Sequence[Text]) -> Tensors:
    """Return an MLP speculator, none of its weights tied, with heads that fit these texts best."""
    vocabulary, n = config["vocab_size"], config["n_predict"]
    states = [list(_states(config, tensors, text)) for text in texts]
    taught = dict(tensors)
    for at in range(n):
        # The last states of a text have nothing after them.
        pairs = [
            (each[at][: len(text.tokens) - 2 - at], text.tokens[2 + at :])
            for each, text in zip(states, texts, strict=True)
        ]
        taught[f"speculator.head.{at}.weight"] = _fitting(pairs, vocabulary)
    return taught


def _states(config: dict[str, Any], tensors: Tensors, text: Text) -> Iterator[torch.Tensor]:
    """What each stage's head is applied to, had all stages before it been right."""
    weight = 0.5 ** (0.5 / config["n_predict"])
    of_tokens = math.sqrt((1 - weight**2) * config["inner_dim"] / 2) / weight
    state = text.hidden.float()
    for at in range(config["n_predict"]):
        said = tensors[f"speculator.emb.{at}.weight"][text.tokens.roll(-1 - at)]
        state = state @ tensors[f"speculator.proj.{at}.weight"].t() + of_tokens * said
        scale, shift = (tensors[f"speculator.ln.{at}.{leaf}"] for leaf in ("weight", "bias"))
        state = gelu(rms_norm(state, state.shape[1:], scale, 1e-6) + shift)
        yield state


def _fitting(pairs: list[tuple[torch.Tensor, torch.Tensor]], vocabulary: int) -> torch.Tensor:
    """Return the matrix [vocabulary, k] whose scores of x [n, k] are nearest to tokens [n]."""
    x = torch.cat([one for one, _ in pairs])
    wanted = one_hot(torch.cat([tokens for _, tokens in pairs]), vocabulary).float()
    found: torch.Tensor = torch.linalg.lstsq(x, wanted, driver="gelsd").solution
    return found.t().contiguous()
