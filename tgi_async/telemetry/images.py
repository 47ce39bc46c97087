"""Metrics of images. Times are in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from tgi_async.telemetry.instruments import Counter, Histogram, gauge

DURATION_BOUNDS = [0.001 * 2**k for k in range(16)]
"""Seconds, 0.001 to 32.8."""


class Stored(Protocol):
    """The store of prepared images. Sizes are in bytes."""

    max_bytes: int

    @property
    def n_bytes(self) -> int: ...

    @property
    def held_bytes(self) -> int: ...


class ImageCounts:
    """What became of images, for a model that takes them."""

    def __init__(self) -> None:
        self.store: Stored | None = None
        """The store, once there is one."""
        self._results = Counter(
            "tgi_async_images",
            "Images of requests, by what became of them",
            "result",
            ("prepared", "reused", "refused"),
        )
        self._fetch = Histogram(
            "tgi_async_image_fetch_duration",
            "From an image's turn to be fetched to its last byte",
            DURATION_BOUNDS,
        )
        self._prepare = Histogram(
            "tgi_async_image_prepare_duration",
            "Decoding and preparing an image, waiting for a process included",
            DURATION_BOUNDS,
        )
        self._encoded = Counter(
            "tgi_async_encoded_images", "Images that went through the model's encoder"
        )
        self._encode = Histogram(
            "tgi_async_image_encode_duration",
            "Encoding the images of a step",
            DURATION_BOUNDS,
        )

    def image_reused(self) -> None:
        """Count an image that was prepared before."""
        self._results.add(label="reused")

    def image_fetched(self, seconds: float) -> None:
        """Record an image that came over the net."""
        self._fetch.observe(seconds)

    def image_prepared(self, seconds: float) -> None:
        """Record an image that was prepared."""
        self._prepare.observe(seconds)
        self._results.add(label="prepared")

    def image_refused(self) -> None:
        """Count an image that was refused."""
        self._results.add(label="refused")

    def encoded(self, n: int, seconds: float) -> None:
        """Record that a step encoded `n` images."""
        self._encoded.add(n)
        self._encode.observe(seconds)

    def lines(self) -> Iterator[str]:
        """Return the lines of the text format."""
        for one in (self._results, self._fetch, self._prepare, self._encoded, self._encode):
            yield from one.lines()
        if self.store is not None:
            for name, text, value in (
                ("tgi_async_image_bytes", "Bytes of prepared images", self.store.n_bytes),
                (
                    "tgi_async_image_held_bytes",
                    "Bytes of prepared images that live requests hold",
                    self.store.held_bytes,
                ),
                (
                    "tgi_async_image_max_bytes",
                    "Most bytes that prepared images may take",
                    self.store.max_bytes,
                ),
            ):
                yield gauge(name, text, value)
