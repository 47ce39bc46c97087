"""Whether nodes have the same model, as far as a look at its files shows."""

from __future__ import annotations

import hashlib
from pathlib import Path

WEIGHTS = ("*.safetensors", "*.gguf", "*.bin", "*.pt")


def fingerprint(folder: Path) -> str:
    """Return a digest of the configuration, and of the names and sizes of the weights' files."""
    digest = hashlib.sha256()
    config = folder / "config.json"
    if config.is_file():
        digest.update(config.read_bytes())
    found = {path for pattern in WEIGHTS for path in folder.glob(pattern)}
    for path in sorted(found, key=lambda one: one.name):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
    return digest.hexdigest()
