"""Bytes of pixels to numbers that models take, to the same bits as transformers and faster.

transformers makes an array for each operation and each type on the way, and lays the last one out
from its end. Here one array is made, in order, and changed where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[Any]
"""[channels, height, width]"""


def replace_arithmetic(processor: Any) -> None:
    """Have an image processor of transformers scale and normalize pixels as below."""
    its_own = processor.normalize

    def normalized(image: Pixels, mean: Any, std: Any, **others: Any) -> Pixels:
        if image.dtype == np.float32 and image.flags.owndata:  # what `rescale` made
            return normalize(image, mean, std)
        normal: Pixels = its_own(image, mean, std, **others)
        return normal

    processor.rescale = rescale
    processor.normalize = normalized


def rescale(image: Pixels, scale: float, **_: Any) -> NDArray[np.float32]:
    """Return pixels times `scale`: multiplied as float64 and rounded to float32."""
    scaled = np.empty(image.shape, np.float32)
    return np.multiply(image, scale, out=scaled, dtype=np.float64, casting="same_kind")


def normalize(
    image: NDArray[np.float32], mean: float | Sequence[float], std: float | Sequence[float]
) -> NDArray[np.float32]:
    """Subtract the mean of each channel and divide by its deviation, in place."""
    image -= np.asarray(mean, np.float32).reshape(-1, 1, 1)
    image /= np.asarray(std, np.float32).reshape(-1, 1, 1)
    return image
