"""From the images that a request names to arrays in files, which workers read.

Nothing is decoded twice: images are kept under a hash of their encoded bytes, and what several
requests ask for at once is done once.
"""

from __future__ import annotations

import asyncio
import errno
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any, ParamSpec, Protocol, TypeVar

from tgi_async.errors import Overloaded, ValidationError
from tgi_async.fair_threads import CLIENT, FairThreads
from tgi_async.images.addresses import Domains
from tgi_async.images.family import Family
from tgi_async.images.fetch import Fetcher, Resolve
from tgi_async.images.flights import Flights
from tgi_async.images.preparer import COMMAND, Preparer
from tgi_async.images.shared_memory import default_bytes, folder_in
from tgi_async.images.source import ImageSource as ImageSource
from tgi_async.images.source import Refused, data_of, is_data
from tgi_async.images.store import EncodedFile, NoRoom, Store, remove
from tgi_async.images.store import ReadyImage as ReadyImage

P = ParamSpec("P")
R = TypeVar("R")
Work = Callable[[], Coroutine[Any, Any, ReadyImage]]

MAX_URLS = 4096
"""URLs of which it is known what they stood for a short time ago."""


class ImageMetrics(Protocol):
    """The metrics that are recorded here. Times are in seconds."""

    def image_reused(self) -> None: ...

    def image_fetched(self, seconds: float) -> None: ...

    def image_prepared(self, seconds: float) -> None: ...

    def image_refused(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What the operator allows. Sizes are in bytes."""

    domains: Domains
    """Where images are fetched from."""
    max_images: int
    """Most images of a request."""
    max_pixels: int
    """Most pixels of an image."""
    max_encoded: int
    """Largest image as it comes."""
    fetch_seconds: float
    """Time for fetching an image."""
    memory: int | None = None
    """What prepared images take in all; None: a part of what is free."""


class Images:
    """Makes images ready for one model. For one event loop."""

    def __init__(
        self,
        family: Family,
        preparer: Preparer,
        folder: str,
        fetcher: Fetcher,
        metrics: ImageMetrics,
        limits: ImageLimits,
    ) -> None:
        self.family = family
        self.max_images = limits.max_images
        """Most images of a request."""
        self.store = Store(folder, limits.memory or default_bytes(folder), self._remove)
        self._preparer = preparer
        self._fetcher = fetcher
        self._metrics = metrics
        self._max_encoded = limits.max_encoded
        self._threads = FairThreads(2, "image data")
        self._fetching: Flights[ReadyImage] = Flights()
        self._preparing: Flights[ReadyImage] = Flights()
        self._urls: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        """What each stood for, and until when that counts."""
        self._closing = ExitStack()

    @classmethod
    async def start(
        cls,
        model: Path,
        scratch: str,
        limits: ImageLimits,
        metrics: ImageMetrics,
        *,
        trust_remote_code: bool = False,
        command: tuple[str, ...] = COMMAND,
        resolve: Resolve | None = None,
    ) -> Images:
        """Start a process that prepares images for the model in the folder `model`.

        Files go to shared memory, or to the folder `scratch`. `resolve` finds the addresses of
        hosts, in place of the system. Raises NotServed if the model's images cannot be prepared.
        """
        with ExitStack() as closing:
            # Removed once no process writes to it any more.
            folder = folder_in(scratch, closing)
            preparer = Preparer(
                model,
                max_pixels=limits.max_pixels,
                trust_remote_code=trust_remote_code,
                command=command,
            )
            closing.callback(preparer.close)
            family = await preparer.describe()
            fetcher = Fetcher(
                limits.domains,
                max_bytes=limits.max_encoded,
                seconds=limits.fetch_seconds,
                resolve=resolve,
            )
            closing.callback(fetcher.close)
            images = cls(family, preparer, folder, fetcher, metrics, limits)
            images._closing = closing.pop_all()
        return images

    async def ready(self, sources: Sequence[ImageSource], client: str) -> list[ReadyImage]:
        """Return the images, in this order. Their files are there as long as they are.

        Raises:
            ValidationError: one cannot be taken, or there are too many.
            Overloaded: images of other requests take all the room, or too many wait.
        """
        if len(sources) > self.max_images:
            raise ValidationError(
                f"a request may have at most {self.max_images} images. Given: {len(sources)}. The "
                "limit is set by the server's --max-images-per-request",
                param=sources[self.max_images].field or None,
            )
        waits = [asyncio.create_task(self._one(source, client)) for source in sources]
        try:
            return list(await asyncio.gather(*waits))
        except NoRoom as full:
            own = sum(
                wait.result().size
                for wait in waits
                if wait.done() and not wait.cancelled() and wait.exception() is None
            )
            raise self._no_room(full.size and full.size + own) from None
        finally:
            # Not held any longer: an exception of theirs holds this frame, and so all images.
            while waits:
                waits.pop().cancel()

    def close(self) -> None:
        """End what is under way and the processes, and remove the files."""
        self._fetching.cancel()
        self._preparing.cancel()
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._closing.close()

    async def _one(self, source: ImageSource, client: str) -> ReadyImage:
        CLIENT.set(client)
        try:
            if is_data(source.url):
                return await self._of_data(source)
            return await self._of_url(source)
        except Refused as refused:
            self._metrics.image_refused()
            where = f" (`{source.field}`)" if source.field else ""
            raise ValidationError(f"{refused}{where}", param=source.field or None) from None
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise self.store.full() from None

    async def _of_data(self, source: ImageSource) -> ReadyImage:
        with self.store.reservation() as reserved:
            reserved.grow(min(len(source.url), self._max_encoded))
            data, digest = await self._in_thread(_hashed, source.url, self._max_encoded)
            if (known := self._known(digest, source.detail)) is not None:
                return known
            with self.store.encoded() as encoded:
                await self._in_thread(encoded.write, data)
                del data
                return await self._prepared(digest, source.detail, encoded)

    async def _of_url(self, source: ImageSource) -> ReadyImage:
        digest, until = self._urls.get(source.url, (b"", 0.0))
        known = self._known(digest, source.detail) if time.monotonic() < until else None
        if known is not None:
            return known
        work = partial(self._fetch_and_prepare, source)
        return await self._join(self._fetching, (source.url, source.detail), work)

    async def _fetch_and_prepare(self, source: ImageSource) -> ReadyImage:
        began = time.monotonic()
        with self.store.encoded() as encoded, self.store.reservation() as reserved:
            fetched = await self._fetcher.fetch(source.url, encoded.path, reserved)
            now = time.monotonic()
            self._metrics.image_fetched(now - began)
            self._urls[source.url] = fetched.digest, now + fetched.seconds
            self._urls.move_to_end(source.url)
            if len(self._urls) > MAX_URLS:
                self._urls.popitem(last=False)
            known = self._known(fetched.digest, source.detail)
            return known or await self._prepared(fetched.digest, source.detail, encoded)

    def _known(self, digest: bytes, detail: str) -> ReadyImage | None:
        known = self.store.get(digest + detail.encode())
        if known is not None:
            self._metrics.image_reused()
        return known

    async def _prepared(self, digest: bytes, detail: str, encoded: EncodedFile) -> ReadyImage:
        work = partial(self._prepare, digest + detail.encode(), detail, encoded)
        return await self._join(self._preparing, (digest, detail), work)

    async def _join(
        self, flights: Flights[ReadyImage], key: tuple[str | bytes, str], work: Work
    ) -> ReadyImage:
        joined = key in flights
        image = await flights.join(key, work)
        if joined:
            self._metrics.image_reused()
        return image

    async def _prepare(self, key: bytes, detail: str, encoded: EncodedFile) -> ReadyImage:
        began = time.monotonic()
        path = self.store.new_path()
        try:
            answer = await self._preparer.prepare(encoded, detail, path)
        except Refused:
            full = self.store.is_full
            self.store.remove(path)
            if full:
                raise self.store.full() from None
            raise
        image = self.store.put(key, answer.prepared, path, answer.arrays)
        self._metrics.image_prepared(time.monotonic() - began)
        return image

    def _remove(self, path: str) -> None:
        with suppress(RuntimeError):  # at the end the folder goes as a whole
            self._threads.submit(remove, path)

    async def _in_thread(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        return await asyncio.wrap_future(self._threads.submit(function, *args, **kwargs))

    def _no_room(self, size: int) -> ValidationError | Overloaded:
        if not size:
            return Overloaded("There is no space left for images on the server")
        limit = self.store.max_bytes
        if size > limit:
            return ValidationError(
                f"the images of this request take {size} bytes when they are prepared, and at most "
                f"{limit} are possible. Send fewer or smaller ones. The limit is set by the "
                "server's --image-cache-memory"
            )
        return Overloaded(
            f"Images of requests that are being served take all of the {limit} bytes for them"
        )


def _hashed(url: str, most: int) -> tuple[bytes, bytes]:
    """Return the bytes of a `data:` URL, and 16 bytes of their hash. Raises Refused."""
    data = data_of(url, most)
    return data, blake2b(data, digest_size=16).digest()
