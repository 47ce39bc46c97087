from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.image_host import ImageHost, answer
from tests.doubles.image_process import COMMAND, asked
from tgi_async.errors import Overloaded, ServerError, ValidationError
from tgi_async.images import images as module
from tgi_async.images import shared_memory
from tgi_async.images.addresses import Domains
from tgi_async.images.fetch import AT_ONCE
from tgi_async.images.images import ImageLimits, Images, ImageSource, ReadyImage
from tgi_async.images.preparer import NotServed
from tgi_async.images.store import OVERHEAD, EncodedFile


class Counted:
    """Metrics that count."""

    def __init__(self) -> None:
        self.fetched = self.prepared = self.reused = self.refused = 0

    def image_reused(self) -> None:
        self.reused += 1

    def image_fetched(self, seconds: float) -> None:
        assert seconds > 0
        self.fetched += 1

    def image_prepared(self, seconds: float) -> None:
        assert seconds > 0
        self.prepared += 1

    def image_refused(self) -> None:
        self.refused += 1


class World:
    """Images of a mock of a model, and a host to fetch them from."""

    def __init__(self, folder: Path) -> None:
        self.model = folder / "model"
        self.scratch = folder / "scratch"
        self.model.mkdir()
        self.scratch.mkdir()
        self.host = ImageHost()
        self.metrics = Counted()
        self.closing = contextlib.AsyncExitStack()

    async def start(self, **limits: Any) -> Images:
        self.port = await self.host.start()
        self.closing.push_async_callback(self.host.stop)
        self.images = await self.again(**limits)
        return self.images

    async def again(self, **limits: Any) -> Images:
        given: dict[str, Any] = {
            "domains": Domains([f"a.example:{self.port}", "*"], private=True),
            "max_images": 4,
            "max_pixels": 10_000,
            "max_encoded": 1000,
            "fetch_seconds": 5.0,
            "memory": 1 << 20,
        }
        images = await Images.start(
            self.model,
            str(self.scratch),
            ImageLimits(**{**given, **limits}),
            self.metrics,
            command=COMMAND,
            resolve=self._addresses,
        )
        self.closing.callback(images.close)
        return images

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    def url(self, path: str, text: str, *, cache_control: str = "") -> ImageSource:
        self.host.answers[path] = answer(text.encode(), cache_control=cache_control)
        return ImageSource(f"http://a.example:{self.port}{path}")

    @property
    def asked(self) -> list[str]:
        return [one["data"] for one in asked(self.model)]

    async def files(self, n: int) -> list[str]:
        """In the folder of images, once there are `n`."""
        folder = self.scratch / "images"
        async with asyncio.timeout(5):
            while len(os.listdir(folder)) != n:  # noqa: ASYNC110 - threads remove them
                await asyncio.sleep(0.01)
        return sorted(os.listdir(folder))


def names(ready: Sequence[ReadyImage]) -> list[str]:
    return sorted(os.path.basename(one.path) for one in ready)


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(shared_memory, "SHARED_MEMORY", "/nowhere")
    world = World(tmp_path)
    async with world.closing:
        yield world


def data(text: str, field: str = "", detail: str = "auto") -> ImageSource:
    encoded = base64.b64encode(text.encode()).decode()
    return ImageSource(f"data:image/png;base64,{encoded}", detail, field)


async def test_images_come_in_their_order_from_wherever(world: World) -> None:
    images = await world.start()
    assert images.family.kind == "mock"
    assert images.max_images == 4
    sources = [
        data("sleep 0.1 size 2 3"),
        world.url("/a", "size 4 5"),
        data("size 6 7"),
    ]
    ready = await images.ready(sources, "c")
    assert [(one.prepared.width, one.prepared.height) for one in ready] == [(2, 3), (4, 5), (6, 7)]
    assert [os.stat(one.path).st_size for one in ready] == [6, 20, 42]
    assert [one.arrays[0].shape for one in ready] == [[3, 2], [5, 4], [7, 6]]
    assert (world.metrics.prepared, world.metrics.fetched) == (3, 1)
    assert await world.files(3) == names(ready)
    assert await images.ready([], "c") == []


async def test_the_same_image_is_neither_decoded_nor_fetched_again(world: World) -> None:
    images = await world.start()
    text = "size 2 3"
    (first,) = await images.ready([data(text)], "c")
    digest = first.prepared.digest
    again = await images.ready([data(text), world.url("/a", text), world.url("/b", text)], "d")
    assert again == [first] * 3
    del first, again
    (kept,) = await images.ready([world.url("/a", "size 9 9")], "c")
    assert kept.prepared.digest == digest
    assert world.asked == [text]
    assert len(world.host.requests) == world.metrics.fetched == 2
    assert (world.metrics.prepared, world.metrics.reused) == (1, 4)


async def test_a_url_is_fetched_again_where_its_server_wants_that(world: World) -> None:
    images = await world.start()
    for text in ("size 1 2", "size 3 4"):
        source = world.url("/a", text, cache_control="no-store")
        (image,) = await images.ready([source], "c")
        assert f"size {image.prepared.width} {image.prepared.height}" == text


async def test_as_many_urls_are_known_as_there_is_room_for(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_URLS", 2)
    images = await world.start()
    for path in ("/a", "/b", "/c", "/c", "/b", "/a"):
        await images.ready([world.url(path, "size 1 1")], "c")
    assert [head.split(" ")[1] for head in world.host.requests] == ["/a", "/b", "/c", "/a"]


async def test_another_detail_is_another_image(world: World) -> None:
    images = await world.start()
    low, high = await images.ready(
        [data("size 2 3", detail="low"), data("size 2 3", detail="high")], "c"
    )
    assert low.prepared.digest != high.prepared.digest
    assert sorted(one["detail"] for one in asked(world.model)) == ["high", "low"]
    assert await images.ready([data("size 2 3", detail="low")], "c") == [low]


async def test_what_many_ask_for_at_once_is_done_once(world: World) -> None:
    images = await world.start()
    text = "sleep 0.2 size 2 3"
    sources = [[data(text), world.url("/a", text)] for _ in range(5)]
    found = await asyncio.gather(*(images.ready(pair, "c") for pair in sources))
    assert len({one.path for pair in found for one in pair}) == 1
    assert world.asked == [text]
    assert len(world.host.requests) == 1
    assert (world.metrics.prepared, world.metrics.reused) == (1, 9)


async def test_who_leaves_takes_nobody_along(world: World) -> None:
    images = await world.start()
    text = "sleep 0.3 size 2 3"
    source = world.url("/a", text)
    first, second = (asyncio.create_task(images.ready([source], client)) for client in "ab")
    async with asyncio.timeout(20):
        while not world.asked:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    first.cancel()
    (image,) = await second
    assert first.cancelled()
    assert image.prepared.width == 2
    assert world.asked == [text]
    assert await world.files(1) == names([image])


async def test_what_all_have_left_leaves_no_files(world: World) -> None:
    images = await world.start()
    sources = [world.url("/a", "sleep 0.2 size 2 3"), data("sleep 0.2 size 3 3")]
    task = asyncio.create_task(images.ready(sources, "a"))
    async with asyncio.timeout(20):
        while len(world.asked) < 2:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.wait({task})
    ready = await images.ready([data("size 1 1"), data("sleep 0.1 size 1 2")], "b")
    # On a busy machine one may have been prepared before all had left.
    n = world.metrics.prepared
    assert set(await world.files(n)) >= set(names(ready))
    assert images.store.n_bytes < n * (OVERHEAD + 10)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("data:image/png;base64,A", "base64 encoding is invalid: its length fits no number"),
        ("data:image/png,A", "invalid image content: a data: URL must be data:<type>;base64,"),
        (data("no pixels").url, "invalid image: pixels"),
        (data("size 200 200").url, "invalid image: it has 40000 pixels, and at most 10000 are"),
        (data("x" * 1001).url, "Image size 1001 bytes exceeds maximum allowed size of 1000 bytes"),
        ("http://b.example:1/", "Could not fetch image: b.example:1 is not allowed"),
        ("http://b.example/", "Could not fetch image: b.example has an address that is not public"),
        ("/9j/4AAQ", "Could not fetch image: its URL must begin with http://, https:// or data:"),
    ],
)
async def test_a_refusal_is_in_words_of_tgi_and_names_the_field(
    world: World, url: str, words: str
) -> None:
    images = await world.start()
    field = "messages[0].content[1].image_url"
    with pytest.raises(ValidationError) as refused:
        await images.ready([data("size 1 1"), ImageSource(url, field=field)], "c")
    assert str(refused.value).startswith(f"Input validation error: {words}")
    assert str(refused.value).endswith(f" (`{field}`)")
    assert refused.value.param == field
    assert world.metrics.refused == 1
    with pytest.raises(ValidationError) as nameless:
        await images.ready([ImageSource(url)], "c")
    assert nameless.value.param is None


async def test_too_many_images_are_refused_before_any_is_looked_at(world: World) -> None:
    images = await world.start()
    sources = [data("size 1 1", field=f"f[{n}]") for n in range(6)]
    with pytest.raises(
        ValidationError, match=r"at most 4 images\. Given: 6.*--max-images-per-r"
    ) as e:
        await images.ready(sources, "c")
    assert e.value.param == "f[4]"
    assert world.asked == []
    assert len(await images.ready(sources[:4], "c")) == 4


async def test_images_that_live_requests_hold_can_fill_the_store(world: World) -> None:
    size = 5000 + OVERHEAD
    images = await world.start(memory=2 * size + 2000)
    held = await images.ready([data("size 50 100 a"), data("size 50 100 b")], "c")
    with pytest.raises(Overloaded, match=rf"take all of the {2 * size + 2000} bytes for them"):
        await images.ready([data("size 50 100 c")], "d")
    assert await world.files(2) == names(held)
    del held[0]
    await images.ready([data("size 50 100 c")], "d")
    assert all(os.path.exists(one.path) for one in held)  # noqa: ASYNC240


async def test_what_can_never_fit_is_not_asked_to_come_again(world: World) -> None:
    images = await world.start(memory=3 * OVERHEAD)
    with pytest.raises(ValidationError, match=r"at most 24576 are possible.*--image-cache-memory"):
        await images.ready([data("size 100 100"), data("size 99 100"), data("size 98 100")], "c")
    with pytest.raises(ValidationError, match=r"at most 24576 are possible"):
        await images.ready([data("size 100 100"), data("size 100 99")], "c")
    async with asyncio.timeout(5):
        while images.store.held_bytes:  # noqa: ASYNC110 - tasks that were cancelled end
            await asyncio.sleep(0.01)
    assert await world.files(1)


async def test_a_file_system_that_others_fill_is_overload(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = await world.start()
    monkeypatch.setattr(type(images.store), "is_full", property(lambda store: True))
    with pytest.raises(Overloaded, match="There is no space left for images on the server"):
        await images.ready([data("no room on the device")], "c")
    assert world.metrics.refused == 0

    def full(encoded: EncodedFile, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(EncodedFile, "write", full)
        with pytest.raises(Overloaded, match="There is no space left"):
            await images.ready([data("size 1 1")], "c")
    await images.ready([data("size 1 1")], "c")


async def test_a_slow_image_delays_nobody_else(world: World) -> None:
    images = await world.start()
    slow = asyncio.create_task(images.ready([data("sleep 60 size 1 1")], "a"))
    async with asyncio.timeout(20):
        while not world.asked:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    await images.ready([data("size 1 2")], "b")
    assert not slow.done()
    slow.cancel()


async def test_an_image_that_kills_its_process_fails_alone(world: World) -> None:
    images = await world.start()
    outcomes = await asyncio.gather(
        images.ready([data("die 9")], "a"),
        images.ready([data("sleep 0.1 size 1 2")], "b"),
        return_exceptions=True,
    )
    assert isinstance(outcomes[0], ValidationError)
    assert isinstance(outcomes[1], list)
    await images.ready([data("size 1 3")], "a")


async def test_a_failure_of_one_is_told_to_all_who_wait_by_their_fields(world: World) -> None:
    images = await world.start()
    text = "sleep 0.1 no pixels"
    refused = await asyncio.gather(
        images.ready([data(text, "a")], "a"),
        images.ready([data(text, "b")], "b"),
        return_exceptions=True,
    )
    assert [one.param for one in refused if isinstance(one, ValidationError)] == ["a", "b"]
    assert world.asked == [text]


async def test_models_whose_images_are_not_served_leave_nothing(world: World) -> None:
    (world.model / "refused").write_text("it draws")
    with pytest.raises(NotServed, match="it draws"):
        await world.start()
    assert os.listdir(world.scratch) == []


async def test_at_the_end_nothing_is_left(world: World) -> None:
    images = await world.start()
    held = await images.ready([data("size 1 1")], "a")
    waiting = asyncio.create_task(images.ready([data("sleep 60 size 2 2")], "b"))
    async with asyncio.timeout(20):
        while len(world.asked) < 2:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    images.close()
    images.close()
    await asyncio.wait({waiting}, timeout=5)
    assert waiting.cancelled()
    assert held[0].size
    assert os.listdir(world.scratch) == []


@pytest.mark.parametrize("n_rounds", [6, pytest.param(60, marks=pytest.mark.full)])
async def test_whatever_clients_do_nothing_is_lost_or_left(world: World, n_rounds: int) -> None:
    images = await world.start(memory=12 * (OVERHEAD + 1000))
    rng = random.Random(n_rounds)
    pool = [ImageSource("http://b.example/"), ImageSource("data:,x")]
    for n in range(24):
        text = rng.choice(["", "sleep 0.02 ", "sleep 0.05 "])
        text += f"size {n + 1} 7" if n % 8 else rng.choice(["no pixels", "die 3", "what?"])
        control = rng.choice(["", "no-store"])
        pool += [data(text), world.url(f"/{n}", text, cache_control=control)]
    ends: Counter[str] = Counter()

    async def ask(client: str) -> None:
        wait = asyncio.create_task(images.ready(rng.choices(pool, k=rng.randint(1, 4)), client))
        if rng.random() < 0.4:
            await asyncio.sleep(rng.random() * 0.1)
            wait.cancel()
        try:
            ready = await wait
        except (asyncio.CancelledError, ServerError) as error:
            ends[type(error).__name__] += 1
            return
        ends["ready"] += 1
        for _ in range(2):
            assert [os.stat(one.path).st_size for one in ready] == [
                one.prepared.width * one.prepared.height for one in ready
            ]
            await asyncio.sleep(rng.random() * 0.05)

    async def client(name: str) -> None:
        for _ in range(n_rounds):
            await ask(name)

    await asyncio.gather(*(client(f"c{n % 4}") for n in range(12)))
    assert {"ready", "CancelledError", "ValidationError"} <= ends.keys()
    async with asyncio.timeout(5):
        while images.store.held_bytes:  # noqa: ASYNC110 - tasks that were cancelled end
            await asyncio.sleep(0.01)
    store, fetcher = images.store, images._fetcher
    assert store.reserved == 0
    assert store.n_bytes <= store.max_bytes
    await world.files(len(store._kept))
    assert (images._fetching._flights, images._preparing._flights) == ({}, {})
    assert (fetcher._turns._free, fetcher._turns._waiting) == (AT_ONCE, {})
