"""Start what prepares images while the model loads, where the model may take them."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from tgi_async.images.images import ImageLimits, Images
from tgi_async.images.preparer import COMMAND, NotServed
from tgi_async.settings import Settings
from tgi_async.telemetry.images import ImageCounts

log = logging.getLogger(__name__)

FILES = ("preprocessor_config.json", "processor_config.json")
"""Models with any of these are likely to take images; those of text alone have none."""


def likely(model: Path) -> bool:
    """Return whether the model in a folder may take images, as far as the names of its files
    tell."""
    return any((model / name).is_file() for name in FILES)


class StartingImages:
    """Images of the model in the folder `model`, being started. `scratch` is a folder for files."""

    def __init__(
        self,
        settings: Settings,
        model: Path,
        scratch: str,
        counts: ImageCounts,
        *,
        command: tuple[str, ...] = COMMAND,
    ) -> None:
        self._settings = settings
        self._model = model
        self._scratch = scratch
        self._counts = counts
        self._command = command
        self._task: asyncio.Task[Images] | None = None
        if likely(model):
            self._begin()

    async def images(self, *, taken: bool) -> Images | None:
        """Return them, once they can be prepared; None where the model's images are not `taken`, or
        cannot be prepared, of which the log has the reason."""
        if not taken:
            await self.end()
            return None
        try:
            images = await (self._task or self._begin())
        except NotServed as reason:
            log.warning("requests with images are refused, and all others served: %s", reason)
            return None
        self._counts.store = store = images.store
        log.info(
            "images: %d in a request, %.2f GB of them prepared; fetched from: %s",
            images.max_images,
            store.max_bytes / 1e9,
            ", ".join(self._settings.image_domains.allowed) or "nowhere (--allow-image-domains)",
        )
        return images

    async def end(self) -> None:
        """End them, whatever state they are in. May be called repeatedly."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.wait({self._task})
        if not self._task.cancelled() and self._task.exception() is None:
            self._task.result().close()

    def _begin(self) -> asyncio.Task[Images]:
        settings = self._settings
        limits = ImageLimits(
            domains=settings.image_domains,
            max_images=settings.max_images_per_request,
            max_pixels=settings.max_image_pixels,
            max_encoded=settings.max_image_fetch_size,
            fetch_seconds=settings.image_fetch_timeout,
            memory=settings.image_cache_memory,
        )
        self._task = asyncio.create_task(
            Images.start(
                self._model,
                self._scratch,
                limits,
                self._counts,
                trust_remote_code=settings.trust_remote_code,
                command=self._command,
            )
        )
        return self._task
