"""The folder of a draft model: what model it drafts for, and its weights as they are served."""

from __future__ import annotations

from pathlib import Path

from workers.draft_models.config import DraftModel, draft_model
from workers.json_object import read_object
from workers.models.folder import Lacks, ModelFolder
from workers.models.weight_files import (
    MEDUSA_PICKLED,
    pickled_files,
    read_header,
    safetensors_files,
)


def draft_model_in(folder: ModelFolder) -> DraftModel | None:
    """Return the draft model that a folder holds, or None. Raises `ModelUnavailable`."""
    if folder.gguf is not None:
        return None
    try:
        return draft_model(read_object(folder.path / "config.json"))
    except ValueError as error:
        raise folder.problem(str(error)) from error


def base_of(folder: ModelFolder, draft: DraftModel) -> str:
    """Return the model that it drafts for: an id, or the path of what lies beside a local folder.

    Raises `ModelUnavailable` where none is named.
    """
    if not draft.base:
        raise folder.problem(
            f"its config.json is that of {draft.name}, and does not say for which model: write "
            "that one's id or folder into it, as base_model_name_or_path"
        )
    if folder.revision is None:
        for beside in (folder.path, folder.path.parent):
            if (beside / draft.base).exists():
                return str((beside / draft.base).resolve())
    return draft.base


def ready(folder: ModelFolder, draft: DraftModel) -> Path:
    """Return a folder with the draft model's weights in safetensors. Raises `ModelUnavailable`."""
    try:
        names = safetensors_files(folder.path)
        for name in names:
            read_header(folder.path / name)
        pickled = [] if names else pickled_files(folder.path)
    except ValueError as error:
        raise folder.problem(str(error)) from error
    if names:
        return folder.path
    if not pickled:
        raise folder.problem(
            f"it is {draft.name} without weights (*.safetensors, {MEDUSA_PICKLED} or "
            "pytorch_model.bin)"
        )
    from workers.models.convert import complete

    return complete(folder, Lacks(safetensors=True, tokenizer_json=False), trust_remote_code=False)
