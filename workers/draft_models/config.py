"""What the config.json of a draft model says: of which kind it is, and for which model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tgi_async.wire.messages import MAX_DRAFTS

NAMES = {"medusa": "a Medusa checkpoint", "mlp_speculator": "an MLP speculator"}
"""What the checkpoint of a method is called in messages."""


class DraftModel(NamedTuple):
    """A draft model, as its config describes it."""

    method: str
    """A key of NAMES."""
    n_heads: int
    """Most tokens that it drafts."""
    base: str
    """Id or folder of the model that it drafts for; "" where the config does not say."""
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """What it is, for messages."""
        return NAMES[self.method]


def draft_model(config: Mapping[str, Any]) -> DraftModel | None:
    """Return the draft model that a config.json is of, or None for any other model.

    Raises ValueError for a number of heads that cannot be, and a base that is no text.
    """
    key = _heads_key(config)
    if key is None:
        return None
    method = "mlp_speculator" if key == "n_predict" else "medusa"
    n_heads, base = config.get(key), config.get("base_model_name_or_path") or ""
    if not isinstance(n_heads, int) or not 1 <= n_heads <= MAX_DRAFTS:
        raise ValueError(
            f"its config.json is that of {NAMES[method]}, whose {key} must be a number from 1 to "
            f"{MAX_DRAFTS}. Given: {n_heads!r}"
        )
    if not isinstance(base, str):
        raise ValueError(
            "its config.json must have the id or the folder of a model as base_model_name_or_path. "
            f"Given: {base!r}"
        )
    return DraftModel(method, n_heads, base, config)


def _heads_key(config: Mapping[str, Any]) -> str | None:
    """Return which key has the number of heads; None for what is no draft model."""
    kind = config.get("model_type")
    if kind == "mlp_speculator":
        return "n_predict"
    # Of Medusa's own checkpoints, whose configs say no more than that, and of vLLM's.
    if "medusa_num_heads" in config:
        return "medusa_num_heads"
    return "num_heads" if kind == "medusa" else None
