"""Values of GGUF metadata, which are float32 where they are not whole."""

from __future__ import annotations


def shortest(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 rather than 9.999999747378752e-06."""
    import numpy as np

    return float(str(np.float32(value)))
