"""The process that prepares images: a line of JSON in, a line of JSON out, arrays into files.

Encoded images come from anybody, and decoders are written in C: they run here, within limits of
processor time and memory, at a low priority, and without torch, so that the process is small and
soon started.
"""

from __future__ import annotations

import os
import sys

NICENESS = 10
"""Nice value: below the server, its workers and the checks of grammars."""
WITHOUT = ("torch", "torchvision")
"""What transformers imports where it can, to no use here."""


def main() -> None:
    os.nice(NICENESS)
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "OPENBLAS_NUM_THREADS": "1"}
    sys.modules |= dict.fromkeys(WITHOUT)  # type: ignore[arg-type]  # None: cannot be imported
    from workers.images.preparation import serve  # imports transformers

    with open(sys.stdin.fileno(), "rb", buffering=1 << 20, closefd=False) as requests:
        serve(requests, sys.stdout.buffer)


if __name__ == "__main__":
    main()
