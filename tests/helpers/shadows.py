"""A folder of files with the names of modules that the server imports."""

from __future__ import annotations

from pathlib import Path

NAMES = ("json", "msgspec", "safetensors", "tgi_async", "tokenizers", "torch", "workers", "zmq")
MESSAGE = "a file of the working directory ran"


def write_shadows(folder: Path) -> None:
    """Fill `folder`. What runs one of the files ends with MESSAGE."""
    for name in NAMES:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(f"raise SystemExit({MESSAGE!r})")
