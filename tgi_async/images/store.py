"""Prepared images in files, within a limit of bytes.

A file is there as long as anything holds its `ReadyImage`, which nobody has to give back. Of those
that nobody holds, the ones that were used last are kept for the next request.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from threading import Lock
from typing import NamedTuple, Self
from weakref import ref

from tgi_async.images.family import Prepared
from tgi_async.wire.messages import PixelArray

OVERHEAD = 8192
"""Bytes that count for an image besides its arrays: its last page, and what is known of it."""


FULL = 1 << 20
"""Bytes free in a file system that is as good as full."""


log = logging.getLogger(__name__)

Remove = Callable[[str], object]


def remove(path: str) -> None:
    """Remove a file, if it is there."""
    with suppress(OSError):
        os.unlink(path)


class NoRoom(Exception):
    """`size` more bytes do not fit beside what live requests hold; 0: the file system is full."""

    def __init__(self, size: int) -> None:
        super().__init__(f"no room for {size} bytes")
        self.size = size


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class ReadyImage:
    """A prepared image. Its file is there as long as this object."""

    prepared: Prepared
    path: str
    arrays: list[PixelArray]
    size: int = 0
    """What it takes of the store, in bytes."""


class EncodedFile:
    """An image as it came, in a file that is there as long as anybody uses it. Thread-safe."""

    def __init__(self, path: str, remove: Remove) -> None:
        self.path = path
        self._remove = remove
        self._n_users = 0
        self._lock = Lock()

    def __enter__(self) -> Self:
        with self._lock:
            self._n_users += 1
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._n_users -= 1
            if not self._n_users:
                self._remove(self.path)

    def write(self, data: bytes) -> None:
        """Write it. Takes time; raises OSError."""
        with self, open(self.path, "wb", buffering=0) as file:
            while data:
                data = data[file.write(data) :]


class _Kept(NamedTuple):
    prepared: Prepared
    path: str
    arrays: list[PixelArray]
    size: int
    held: ref[ReadyImage]


class Reservation:
    """Bytes that are about to be used."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.size = 0

    def grow(self, size: int) -> None:
        """Reserve at least `size` in all. Raises NoRoom."""
        more = size - self.size
        if more > 0:
            self._store.make_room(more)
            self._store.reserved += more
            self.size = size


class Store:
    """Keeps at most `max_bytes` in `folder`. For one event loop.

    `remove` removes a file, now or soon: of a large one that takes long.
    """

    def __init__(self, folder: str, max_bytes: int, remove: Remove = remove) -> None:
        self.max_bytes = max_bytes
        self.remove = remove
        self.reserved = 0
        self._folder = folder
        self._kept: OrderedDict[bytes, _Kept] = OrderedDict()
        """By key, what was used last at the end."""
        self._size = 0
        self._numbers = count()

    @property
    def n_bytes(self) -> int:
        """What all files take."""
        return self._size + self.reserved

    @property
    def held_bytes(self) -> int:
        """What live requests hold of that."""
        held = sum(kept.size for kept in self._kept.values() if kept.held() is not None)
        return held + self.reserved

    def new_path(self) -> str:
        """Return the name of a file that is not there."""
        return f"{self._folder}/{next(self._numbers)}"

    @property
    def is_full(self) -> bool:
        """Whether nothing can be written, though there should be room: others fill the place."""
        return shutil.disk_usage(self._folder).free < FULL

    def full(self) -> NoRoom:
        """Remove what nobody holds, as the file system is full; return what to raise."""
        log.warning(
            "no space is left for images in %s, which others fill: those that no request holds are "
            "removed, and this request is refused",
            self._folder,
        )
        for key in [key for key, kept in self._kept.items() if kept.held() is None]:
            self._drop(key)
        return NoRoom(0)

    def encoded(self) -> EncodedFile:
        """Return a file for an image as it comes."""
        return EncodedFile(self.new_path(), self.remove)

    @contextmanager
    def reservation(self) -> Iterator[Reservation]:
        """Give back what was reserved in the block."""
        reservation = Reservation(self)
        try:
            yield reservation
        finally:
            self.reserved -= reservation.size

    def get(self, key: bytes) -> ReadyImage | None:
        """Return the image with this key, if it is kept."""
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        image = kept.held()
        if image is None:
            image = ReadyImage(kept.prepared, kept.path, kept.arrays, kept.size)
            self._kept[key] = kept._replace(held=ref(image))
        return image

    def put(
        self, key: bytes, prepared: Prepared, path: str, arrays: list[PixelArray]
    ) -> ReadyImage:
        """Keep the file at `path`, and return its image. Raises NoRoom, with the file removed."""
        if (known := self.get(key)) is not None:
            self.remove(path)
            return known
        size = os.stat(path).st_size + OVERHEAD
        try:
            self.make_room(size)
        except NoRoom:
            self.remove(path)
            raise
        image = ReadyImage(prepared, path, arrays, size)
        self._kept[key] = _Kept(prepared, path, arrays, size, ref(image))
        self._size += size
        return image

    def make_room(self, size: int) -> None:
        """Remove images that nobody holds until `size` bytes fit. Raises NoRoom."""
        excess = self.n_bytes + size - self.max_bytes
        if excess <= 0:
            return
        unused = [(key, kept.size) for key, kept in self._kept.items() if kept.held() is None]
        if excess > sum(size for _, size in unused):
            raise NoRoom(size)
        for key, freed in unused:
            self._drop(key)
            excess -= freed
            if excess <= 0:
                return

    def _drop(self, key: bytes) -> None:
        kept = self._kept.pop(key)
        self._size -= kept.size
        self.remove(kept.path)
