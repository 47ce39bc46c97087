"""The sources of drafts, by the name that `--speculation` has for them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tgi_async.wire.messages import SpeculationConfig
from workers.draft_models.checkpoint import DraftCheckpoint, TargetModel
from workers.draft_models.config import NAMES, DraftModel, draft_model
from workers.draft_models.medusa import MedusaSource
from workers.draft_models.mlp_speculator import MlpSpeculatorSource
from workers.errors import UnsupportedModel
from workers.json_object import read_object
from workers.speculation.ngram import NgramSource
from workers.speculation.source import DraftSource
from workers.speculation.suffix import SuffixSource

DEFAULT = SuffixSource.method

OF_TEXTS: dict[str, Callable[[], DraftSource]] = {
    NgramSource.method: NgramSource,
    SuffixSource.method: SuffixSource,
}
"""Sources that draft from texts."""

OF_MODELS: dict[str, Callable[[DraftCheckpoint, DraftModel, int], DraftSource]] = {
    MedusaSource.method: MedusaSource,
    MlpSpeculatorSource.method: MlpSpeculatorSource,
}
"""Sources that are a model, the keys of NAMES; each is made with a number of heads."""


def resolved(config: SpeculationConfig) -> SpeculationConfig:
    """Return the config with the number of drafts and the method that it stands for. Raises
    UnsupportedModel for a checkpoint that is no draft model."""
    given = _draft_model(Path(config.path)) if config.path else None
    n = config.max_drafts or (given.n_heads if given else 0)
    method = config.method or (given.method if given else DEFAULT)
    return SpeculationConfig(n, method if n else "", config.path)


def draft_source(config: SpeculationConfig, target: TargetModel) -> DraftSource | None:
    """Return what drafts for a model, or None where nothing is to be drafted.

    Raises UnsupportedModel for a method that is not known or has no checkpoint, for a checkpoint
    that is not the target's, and for more drafts than it has heads.
    """
    if not config.max_drafts:
        return None
    given = _draft_model(Path(config.path)) if config.path else None
    method = config.method or (given.method if given else DEFAULT)
    if method in OF_TEXTS:
        return OF_TEXTS[method]()
    if method not in OF_MODELS:
        known = ", ".join(sorted({*OF_TEXTS, *OF_MODELS}))
        raise UnsupportedModel(f"--speculation is one of {known}. Given: {method}")
    if given is None or given.method != method:
        raise UnsupportedModel(
            f"--speculation {method} needs {NAMES[method]}, which is given as the model "
            "(--model-id) and names the one that it drafts for. Given was "
            + (given.name if given else "a model of its own")
        )
    if config.max_drafts > given.n_heads:
        heads = f"{given.n_heads} head" + "s" * (given.n_heads > 1)
        raise UnsupportedModel(
            f"--speculate is {config.max_drafts}, and the model is {given.name} of {heads}, each "
            f"of which drafts one token: give --speculate {given.n_heads}, or less"
        )
    checkpoint = DraftCheckpoint(Path(config.path), target)
    return OF_MODELS[method](checkpoint, given, config.max_drafts)


def _draft_model(folder: Path) -> DraftModel:
    try:
        found = draft_model(read_object(folder / "config.json"))
    except ValueError as error:
        raise UnsupportedModel(f"the draft model {folder}: {error}") from error
    if found is None:
        raise UnsupportedModel(f"{folder} has no config.json of {' or '.join(NAMES.values())}")
    return found
