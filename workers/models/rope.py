"""Rotary embeddings whose frequencies follow the length of the text, made to follow nothing.

In transformers the kinds `dynamic` and `longrope` recompute their frequencies from the largest
position of a forward pass. Where rows of all lengths share a pass, and a prefix of one text is
found again in another, a key must depend on what is before it only. So the frequencies are fixed
when a model is loaded, for the longest text that will be served: up to the length that the model
was trained on (`PositionLimits.exact`) they are transformers' own; whoever asks for longer texts
gets those for long texts throughout.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, NamedTuple

from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "n_ctx")
"""What families call the number of positions, in configs."""
MOST_POSITIONS = 4096
"""Of a model that knows no limit, unless more are asked for."""
UNLIMITED = 2**20
MOST_COUNTED = 2**30
"""A config that has more positions means that there is no limit."""
FLEXIBLE = ("dynamic", "longrope")
KINDS = ("linear", "dynamic")
"""Of `--rope-scaling`."""


class PositionLimits(NamedTuple):
    """Tokens of a text, prompt and output together."""

    exact: int
    """As far as a text is exactly what transformers generates."""
    most: int
    """As far as the model goes; above `exact` only if asked for."""


def limits_of(config: Any) -> PositionLimits:
    """What a model's config says of its longest text."""
    text = config.get_text_config()
    positions = next((n for name in POSITIONS if (n := getattr(text, name, None))), None)
    if positions is None or positions > MOST_COUNTED:
        return PositionLimits(MOST_POSITIONS, UNLIMITED)
    found = [_limits(rope, positions) for rope in _ropes(text)]
    return PositionLimits(
        min((limits.exact for limits in found), default=positions),
        min((limits.most for limits in found), default=positions),
    )


def _limits(rope: dict[str, Any], positions: int) -> PositionLimits:
    kind, factor = rope.get("rope_type", "default"), rope.get("factor") or 1.0
    original = rope.get("original_max_position_embeddings")
    scaled = int(positions * factor)
    if kind == "linear" and not original:
        return PositionLimits(scaled, scaled)
    if kind == "yarn":
        most = max(positions, int((original or positions) * factor))
        return PositionLimits(most, most)
    if kind == "dynamic":
        return PositionLimits(positions, max(positions, scaled))
    if kind == "longrope":
        return PositionLimits(min(original or positions, positions), positions)
    return PositionLimits(positions, positions)


class Scaling(NamedTuple):
    """`--rope-scaling` and `--rope-factor`."""

    kind: str
    factor: float


def override(config: Any, scaling: Scaling) -> None:
    """Put a scaling in the place of what a config says.

    Raises ValueError for a model without the one rotary embedding that they are about, or with one
    over several axes, and for values that say nothing.
    """
    kind, factor = scaling
    if kind not in KINDS or not 1.0 <= factor < float("inf"):
        raise ValueError(
            f"--rope-scaling is {' or '.join(KINDS)} and goes with --rope-factor of at least 1, "
            f"got {kind!r} and {factor}"
        )
    text = config.get_text_config()
    rope = getattr(text, "rope_parameters", None)
    if not rope or "rope_theta" not in rope or "mrope_section" in rope:
        raise ValueError(
            "--rope-scaling is for a model with one rotary embedding over one axis, which "
            f"{config.model_type} does not have; leave it out"
        )
    kept = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
    text.rope_parameters = kept | {"rope_type": kind, "factor": factor}


def fix(model: Any, asked: int) -> tuple[int, list[str]]:
    """Fix the frequencies of a model, whose buffers have their numbers, for texts of `asked`
    tokens, 0 being as many as are exact. The longest text that can be served, and what a person
    should know of it."""
    limits = limits_of(model.config)
    longest = limits.exact if asked <= limits.exact else min(asked, limits.most)
    kinds: set[str] = set()
    for module in model.modules():
        types = getattr(module, "rope_type", None)
        if isinstance(types, str):
            kinds |= _fix(module, "", types, longest)
        elif isinstance(types, dict):
            for layers, kind in types.items():
                kinds |= _fix(module, layers, kind, longest)
    if not kinds:
        return longest, []
    names = ", ".join(sorted(kinds))
    follows = f"its rotary embedding is of type {names}, which follows the length"
    if longest > limits.exact:
        return longest, [
            f"{follows} of a text in transformers; here it is the one for {longest} tokens, in "
            "texts of every length, so that shorter texts differ from those of transformers. "
            f"--max-total-tokens {limits.exact} makes all texts equal"
        ]
    if limits.most > limits.exact:
        return longest, [
            f"{follows} of a text: texts of up to {longest} tokens are served. --max-total-tokens "
            f"up to {limits.most} serves longer ones, with the embedding for long texts in all"
        ]
    return longest, []


def _fix(module: Any, layers: str, kind: str, longest: int) -> set[str]:
    if kind not in FLEXIBLE:
        return set()
    prefix, of_layers = (f"{layers}_", {"layer_type": layers}) if layers else ("", {})
    old = getattr(module, f"{prefix}inv_freq")
    frequencies, scale = ROPE_INIT_FUNCTIONS[kind](
        module.config, old.device, seq_len=longest, **of_layers
    )
    rope = module.config.rope_parameters
    if "short_mscale" in rope and longest > rope["original_max_position_embeddings"]:
        # PhiMoE scales by the largest position too, in code of its own.
        module.config = deepcopy(module.config)
        module.config.rope_parameters["short_mscale"] = rope["long_mscale"]
    setattr(module, f"{prefix}inv_freq", frequencies.to(old.dtype))
    setattr(module, f"{prefix}attention_scaling", scale)
    fixed = {**module.rope_type, layers: "default"} if layers else "default"
    module.rope_type = fixed
    return {kind}


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary embeddings of a config: none, one, or one for each kind of layer."""
    ropes = getattr(config, "rope_parameters", None) or {}
    nested = [rope for rope in ropes.values() if isinstance(rope, dict)]
    return nested or ([ropes] if ropes else [])
