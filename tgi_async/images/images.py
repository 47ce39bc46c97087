"""From the images that a request names to arrays in files, which workers read.

Nothing is decoded twice: images are kept under a hash of their encoded bytes, and what several
requests ask for at once is done once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import ParamSpec, TypeVar

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.fair_threads import CLIENT, FairThreads
from tgi_async.images.family import Family
from tgi_async.images.flights import Flights
from tgi_async.images.preparer import Preparer
from tgi_async.images.source import ImageSource as ImageSource
from tgi_async.images.source import Refused, data_of, is_data
from tgi_async.images.store import EncodedFile, NoRoom, Store
from tgi_async.images.store import ReadyImage as ReadyImage

P = ParamSpec("P")
R = TypeVar("R")


class Images:
    """Makes images ready for one model. For one event loop."""

    def __init__(
        self,
        family: Family,
        preparer: Preparer,
        store: Store,
        *,
        max_images: int,
        max_encoded_bytes: int,
    ) -> None:
        self.family = family
        self.max_images = max_images
        """Most images of a request."""
        self._preparer = preparer
        self._store = store
        self._max_encoded_bytes = max_encoded_bytes
        self._threads = FairThreads(2, "image data")
        self._preparing: Flights[ReadyImage] = Flights()

    async def ready(self, sources: Sequence[ImageSource], client: str) -> list[ReadyImage]:
        """Return the images, in this order. Their files are there as long as they are.

        Raises:
            ValidationError: one cannot be taken, or there are too many.
            Overloaded: images of other requests take all the room, or too many are on their way.
        """
        if len(sources) > self.max_images:
            raise ValidationError(
                f"a request may have at most {self.max_images} images. Given: {len(sources)}. The "
                "limit is set by the server's --max-images-per-request",
                param=sources[self.max_images].field,
            )
        waits = [asyncio.create_task(self._one(source, client)) for source in sources]
        try:
            return list(await asyncio.gather(*waits))
        except NoRoom as full:
            own = sum(
                wait.result().prepared.n_bytes
                for wait in waits
                if wait.done() and not wait.cancelled() and wait.exception() is None
            )
            raise self._no_room(full.size + own) from None
        finally:
            for wait in waits:
                wait.cancel()

    def close(self) -> None:
        """End what is under way, and the processes."""
        self._preparing.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._preparer.close()

    async def _one(self, source: ImageSource, client: str) -> ReadyImage:
        CLIENT.set(client)
        try:
            return await self._found(source)
        except Refused as refused:
            where = f" (`{source.field}`)" if source.field else ""
            raise ValidationError(f"{refused}{where}", param=source.field or None) from None

    async def _found(self, source: ImageSource) -> ReadyImage:
        if not is_data(source.url):
            raise Refused("Could not fetch image: only data: URLs are served")
        with self._store.reservation() as reserved:
            reserved.grow(min(len(source.url), self._max_encoded_bytes))
            data = await self._in_thread(data_of, source.url, self._max_encoded_bytes)
            digest = blake2b(data, digest_size=16).digest()
            key = digest + source.detail.encode()
            if (known := self._store.get(key)) is not None:
                return known
            return await self._preparing.join(
                key, partial(self._save_and_prepare, key, data, source.detail)
            )

    async def _save_and_prepare(self, key: bytes, data: bytes, detail: str) -> ReadyImage:
        encoded = EncodedFile(self._store.new_path())
        await self._in_thread(Path(encoded.path).write_bytes, data)
        return await self._prepare(key, encoded, detail)

    async def _prepare(self, key: bytes, encoded: EncodedFile, detail: str) -> ReadyImage:
        path = self._store.new_path()
        answer = await self._preparer.prepare(encoded, detail, path)
        return self._store.put(key, answer.prepared, path, answer.arrays)

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))

    def _no_room(self, size: int) -> ValidationError | Overloaded:
        limit = self._store.max_bytes
        if size > limit:
            return ValidationError(
                f"the images of this request take {size} bytes when they are prepared, and at most "
                f"{limit} are possible. Send fewer or smaller ones. The limit is set by the "
                "server's --image-cache-memory"
            )
        return Overloaded(
            f"The images of requests that are being served take all of the {limit} bytes for them"
        )
