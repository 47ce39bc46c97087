"""Which GGUF file of a folder or of a repository is the model."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from workers.errors import ModelUnavailable
from workers.progress import say

# fmt: off
PREFERRED = (
    "Q8_0", "BF16", "F16", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1",
    "IQ4_NL", "IQ4_XS", "Q4_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "Q3_K_S", "F32",
)
# fmt: on
"""The quantization that is chosen: the first of these that is there.

Served as bfloat16, which is the default, a smaller one saves the download only. Q8_0 is half as
long as bfloat16 and hardly less exact; after it, the more exact comes first. Who wants less memory
(--quantize gguf) names a file or a quantization.
"""

PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)

NOT_MODELS = re.compile(r"mmproj|imatrix", re.IGNORECASE)
"""Projectors of images and measurements for quantizing, which come in GGUF files too."""


def only_gguf(names: Iterable[str]) -> bool:
    """Whether the files `names` have a model in GGUF and in no other form at the top."""
    top = [name for name in names if "/" not in name]
    others = (".safetensors", ".bin")
    return bool(_models(top)) and not any(name.endswith(others) for name in top)


def choose_gguf(model_id: str, names: Iterable[str], asked: str | None) -> str:
    """The GGUF file among `names` that `asked` names, or one chosen by `PREFERRED` if it is None.

    `asked` is a file or a quantization, as in Q4_K_M. Raises `ModelUnavailable` where that is no
    file, or not one.
    """
    there = _models(names)
    if not there:
        raise ModelUnavailable(f"model {model_id} has no GGUF file")
    if asked is None:
        chosen = _preferred([name for name in there if "/" not in name])
        if len(there) > 1:
            say(
                f"Of the {len(there)} GGUF files of {model_id}, {chosen} is taken; name another "
                f"with the model id: {_named(model_id)}"
            )
    elif asked.lower().endswith(".gguf"):
        if asked not in there:
            raise ModelUnavailable(f"model {model_id} has no file {asked}; it has {_list(there)}")
        chosen = asked
    else:
        found = [name for name in there if is_quantized(name, asked)]
        if len(found) != 1:
            several = "several files" if found else "no file"
            raise ModelUnavailable(
                f"model {model_id} has {several} quantized as {asked}: name one of "
                f"{_list(found or there)} with the model id: {_named(model_id)}"
            )
        chosen = found[0]
    if PART.search(chosen):
        raise ModelUnavailable(
            f"{chosen} of {model_id} is one part of a GGUF file that was split, which is not read: "
            "join the parts with `llama-gguf-split --merge` and give the file, or name a "
            "quantization that is in one file"
        )
    return chosen


def is_quantized(name: str, quantization: str) -> bool:
    """Whether the file's name says that it is quantized as `quantization`."""
    pattern = rf"(?<![A-Za-z0-9]){re.escape(quantization)}(?![A-Za-z0-9_])"
    return re.search(pattern, PurePosixPath(name).name, re.IGNORECASE) is not None


def _models(names: Iterable[str]) -> list[str]:
    return sorted(
        name
        for name in names
        if name.lower().endswith(".gguf") and not NOT_MODELS.search(PurePosixPath(name).name)
    )


def _preferred(names: list[str]) -> str:
    whole = [name for name in names if not PART.search(name)] or names
    for quantization in PREFERRED:
        for name in whole:
            if is_quantized(name, quantization):
                return name
    return whole[0]


def _named(model_id: str) -> str:
    """How to name a file of a folder, or of a repository."""
    return f"{model_id.rstrip('/')}/FILE" if Path(model_id).is_dir() else f"{model_id}:FILE"


def _list(names: list[str]) -> str:
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
