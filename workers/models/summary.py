"""`python -m workers.models.summary MODEL`: print what a model is, for a bug report."""

from __future__ import annotations

import sys
from pathlib import Path

from tgi_async.cgroups import gigabytes
from workers.errors import ModelUnavailable, UnsupportedModel
from workers.models.prepare import prepare
from workers.progress import say


def main() -> int:
    """Print a line for each thing. Returns the exit status."""
    [model_id] = sys.argv[1:]
    try:
        folder = Path(str(prepare(model_id)["path"]))
        for line in lines_of(folder):
            print(line)
    except (ModelUnavailable, UnsupportedModel, OSError, ValueError) as error:
        say(f"Error: {error}")
        return 1
    return 0


def lines_of(folder: Path) -> list[str]:
    """Return its architecture, how its weights are quantized, and their bytes."""
    # torch is imported for a model that is there only.
    from workers.models.checkpoint import Checkpoint
    from workers.models.description import read_config
    from workers.models.quantization_settings import quantization_settings
    from workers.models.weight_files import safetensors_files
    from workers.quantization.registry import PLAIN, method_of

    config = read_config(folder, trust_remote_code=False)
    method = method_of(quantization_settings(folder, config, Checkpoint(folder)))
    size = sum((folder / name).stat().st_size for name in safetensors_files(folder))
    return [
        f"model: {folder}",
        f"architecture: {', '.join(config.architectures or [config.model_type])}",
        f"quantization: {'none' if method is PLAIN else method.describe()}",
        f"weights: {gigabytes(size)}",
    ]


if __name__ == "__main__":
    raise SystemExit(main())
