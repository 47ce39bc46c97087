"""Which files of a model folder are its weights.

As in transformers, a single file counts more than an index, and an index more than what else is
there. Without either, all weight files together are the model.
"""

from __future__ import annotations

import json
import re
from pathlib import Path, PurePath
from typing import Any

from workers.json_object import read_object

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
SAFETENSORS = re.compile(r"(?!adapter_|consolidated).*\.safetensors")
"""Adapters are no weights of the model, and `consolidated` is a second copy in another layout."""

PICKLED_SINGLE = "pytorch_model.bin"
PICKLED_INDEX = "pytorch_model.bin.index.json"
MEDUSA_PICKLED = "medusa_lm_head.pt"
PICKLED = re.compile(rf"pytorch_model(\.\w+)?(-\d+-of-\d+)?\.bin|{re.escape(MEDUSA_PICKLED)}")

NUMBERED = re.compile(r"(.*-)(\d+)(-of-)(\d+)(\.\w+)")
"""The name of one shard of several."""

LENGTH_BYTES = 8


class WrongWeights(ValueError):
    """The files do not make one model; the message says what is missing, damaged or too much."""


def safetensors_files(folder: Path) -> list[str]:
    """Return the names of the safetensors files of the model; none if there are none.

    Raises:
        WrongWeights: shards are missing, or two files hold the same tensor.
    """
    given = read_object(folder / "config.json").get("transformers_weights")
    if isinstance(given, str) and not given.endswith(".json"):
        _check_inside("config.json", given)
        if not (folder / given).is_file():
            raise WrongWeights(f"its config.json names the weight file {given}, which is not there")
        return [given]
    if given is None and (folder / SINGLE).is_file():
        return [SINGLE]
    names, listed = _several(folder, given or INDEX, SAFETENSORS)
    if not listed:
        _refuse_copies(folder, names)
    return names


def pickled_files(folder: Path) -> list[str]:
    """Return the names of the pickled weight files of the model; none if there are none.

    Raises:
        WrongWeights: shards are missing.
    """
    if (folder / PICKLED_SINGLE).is_file():
        return [PICKLED_SINGLE]
    return _several(folder, PICKLED_INDEX, PICKLED)[0]


def read_header(file: Path) -> dict[str, Any]:
    """Return what the header of a safetensors file says of each tensor.

    Raises:
        WrongWeights: it is no safetensors file, or was cut short.
    """
    length = file.stat().st_size
    with file.open("rb") as opened:
        header_length = int.from_bytes(opened.read(LENGTH_BYTES), "little")
        try:
            if header_length > length:
                raise ValueError("the header is longer than the file")
            header: dict[str, Any] = json.loads(opened.read(header_length))
            header.pop("__metadata__", None)
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise WrongWeights(
                f"{file.name} is not a safetensors file (a git-lfs pointer that was never fetched?)"
            ) from error
    if length != LENGTH_BYTES + header_length + end:
        raise WrongWeights(
            f"{file.name} has {length} bytes and should have {LENGTH_BYTES + header_length + end}: "
            "it was cut short; fetch it again"
        )
    return header


def _several(folder: Path, index: str, pattern: re.Pattern[str]) -> tuple[list[str], bool]:
    """The files that an index lists, or all that there are; and whether an index lists them."""
    there = sorted(
        entry.name
        for entry in folder.iterdir()
        if pattern.fullmatch(entry.name) and entry.is_file()
    )
    if (folder / index).is_file():
        listed = _listed(folder, index)
        missing = [name for name in listed if not (folder / name).is_file()]
        if not missing:
            return listed, True
        # An index of which nothing is there was left behind, or came along with other weights.
        others = there or any(PICKLED.fullmatch(entry.name) for entry in folder.iterdir())
        if len(missing) < len(listed) or not others:
            raise _lost(missing, len(listed))
    for name in there:
        if found := NUMBERED.fullmatch(name):
            stem, digits, of, total, end = found.groups()
            shards = [
                f"{stem}{number:0{len(digits)}}{of}{total}{end}"
                for number in range(1, min(int(total), 10 * len(there)) + 1)
            ]
            if missing := [shard for shard in shards if shard not in there]:
                raise _lost(missing, int(total))
    return there, False


def _listed(folder: Path, index: str) -> list[str]:
    shards = read_object(folder / index).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise WrongWeights(f"its {index} has no weight_map")
    names = sorted({str(name) for name in shards.values()})
    for name in names:
        _check_inside(index, name)
    return names


def _check_inside(file: str, name: str) -> None:
    """Links may lead anywhere, as in huggingface_hub's cache, but names must not."""
    path = PurePath(name)
    if path.is_absolute() or ".." in path.parts:
        raise WrongWeights(f"its {file} names {name!r}, which is not in the folder")


def _lost(missing: list[str], total: int) -> WrongWeights:
    shown = f"{missing[:10]}" + (f" and {len(missing) - 10} more" if len(missing) > 10 else "")
    return WrongWeights(f"of its {total} weight files these are missing: {shown}")


def _refuse_copies(folder: Path, names: list[str]) -> None:
    """Files that no index lists are one model if each tensor is in one of them."""
    holder: dict[str, str] = {}
    for name in names if len(names) > 1 else ():
        for tensor in read_header(folder / name):
            if tensor in holder:
                raise WrongWeights(
                    f"both {holder[tensor]} and {name} hold its tensor {tensor}: they are copies "
                    f"of one model. Leave one of them, or name it {SINGLE}"
                )
            holder[tensor] = name
