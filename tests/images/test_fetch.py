from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.doubles.image_host import ImageHost, answer
from tgi_async.errors import Overloaded
from tgi_async.fair_threads import CLIENT
from tgi_async.images import fetch as module
from tgi_async.images.addresses import Domains
from tgi_async.images.fetch import Fetched, Fetcher
from tgi_async.images.source import Refused
from tgi_async.images.store import NoRoom
from tgi_async.images.turns import Turns

BODY = b"an image, as it came" * 100
MOST = 100_000
PUBLIC = "93.184.215.14"


class Room:
    """Room for `limit` bytes, which remembers how much was asked for."""

    def __init__(self, limit: int = 10 * MOST) -> None:
        self.limit = limit
        self.most = 0

    def grow(self, size: int) -> None:
        self.most = max(self.most, size)
        if size > self.limit:
            raise NoRoom(size)


class Names:
    """A resolver that answers each name with the next of its answers, the last one for ever."""

    def __init__(self, **answers: list[Sequence[str]]) -> None:
        self.answers = {f"{name}.example": list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        found = self.answers.get(host)
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return found[0] if len(found) == 1 else found.pop(0)


@pytest.fixture
async def host() -> AsyncIterator[ImageHost]:
    host = ImageHost()
    host.answers["/"] = answer(BODY)
    yield host
    await host.stop()


@pytest.fixture
async def port(host: ImageHost) -> int:
    return await host.start()


def fetcher(port: int, names: Names | None = None, **settings: Any) -> Fetcher:
    """Of one that may fetch from a.example, which is this machine, and from b.example."""
    given: dict[str, Any] = {"max_bytes": MOST, "seconds": 5.0}
    domains = Domains([f"a.example:{port}", f"b.example:{port}", "*"], private=True)
    names = names or Names(a=[["127.0.0.1"]])
    return Fetcher(domains, resolve=names, **{**given, **settings})


async def fetch(
    fetcher: Fetcher, url: str, path: Path, room: Room | None = None
) -> tuple[Fetched, bytes]:
    try:
        fetched = await fetcher.fetch(url, str(path), room or Room())
    finally:
        fetcher.close()
    return fetched, read(path)


def read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "encoded"


async def test_an_image_is_fetched(host: ImageHost, port: int, path: Path) -> None:
    host.answers["/b%20c.png?d=%C3%BC"] = answer(BODY)
    room = Room()
    url = f"http://a.example:{port}/b%20c.png?d=ü#e"
    fetched, data = await fetch(fetcher(port), url, path, room)
    assert data == BODY
    assert fetched.digest == hashlib.blake2b(BODY, digest_size=16).digest()
    assert room.most == len(BODY)
    (head,) = host.requests
    lines = head.lower().splitlines()
    assert f"host: a.example:{port}" in lines
    assert "accept-encoding: identity" in lines
    names = {line.partition(":")[0] for line in lines[1:] if line}
    assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}


async def test_nothing_is_kept_from_one_fetch_to_the_next(
    host: ImageHost, port: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("NETRC", str(path.parent / "netrc"))
    (path.parent / "netrc").write_text("machine a.example login me password secret\n")
    host.answers["/"] = answer(BODY, set_cookie="a=b; Domain=example")
    one = fetcher(port)
    for _ in range(2):
        await one.fetch(f"http://a.example:{port}/", str(path), Room())
    assert not any("cookie" in head.lower() or "auth" in head.lower() for head in host.requests)


NOT_FETCHED = {
    "not found": (answer(b"no", 404), "its server answered with status 404"),
    "a part": (answer(BODY, 206), "its server answered with status 206"),
    "nothing new": (answer(b"", 304), "its server answered with status 304"),
    "a page": (
        answer(b"<html>", content_type="text/html; charset=utf-8"),
        "text/html, which is no",
    ),
    "JSON": (answer(b"{}", content_type="Application/JSON"), "application/json, which is no image"),
    "gzip": (
        answer(gzip.compress(bytes(10 << 20)), content_encoding="gzip"),
        "in a compressed form, which was not asked for",
    ),
    "brotli": (answer(BODY, content_encoding="br"), "in a compressed form"),
    "nothing": (answer(b""), "its server answered with nothing"),
    "less than it said": (answer(BODY, content_length="5000"), "its server broke off"),
    "no HTTP": (b"SSH-2.0-OpenSSH_9\r\n", "did not answer in HTTP"),
}


@pytest.mark.parametrize(("said", "why"), NOT_FETCHED.values(), ids=NOT_FETCHED)
async def test_what_is_no_image_is_refused_by_what_it_is(
    host: ImageHost, port: int, path: Path, said: bytes, why: str
) -> None:
    host.answers["/"] = said
    with pytest.raises(Refused, match=f"^Could not fetch image: .*{why}"):
        await fetch(fetcher(port), f"http://a.example:{port}/", path)


async def test_a_gigabyte_ends_at_the_limit_and_takes_no_more(
    host: ImageHost, port: int, path: Path
) -> None:
    # CVE-2026-0599: the whole answer was read, whatever its size.
    sent = 0

    async def gigabyte(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(answer(content_length=""))
        with suppress(OSError):
            for _ in range(1024):
                writer.write(bytes(1 << 20))
                await writer.drain()
                sent += 1 << 20

    host.answers["/"] = gigabyte
    room = Room()
    with pytest.raises(
        Refused, match=r"^Image size \d+ bytes exceeds maximum allowed size of 1000"
    ):
        await fetch(fetcher(port), f"http://a.example:{port}/", path, room)
    assert room.most <= MOST
    assert len(read(path)) <= MOST
    await host.stop()
    assert sent < 32 << 20


async def test_a_length_beyond_the_limit_is_not_waited_for(
    host: ImageHost, port: int, path: Path
) -> None:
    async def slow(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(content_length=str(1 << 30)))
        await asyncio.sleep(9)

    host.answers["/"] = slow
    with pytest.raises(
        Refused, match=r"^Image size 1073741824 bytes exceeds maximum allowed size of 100000 bytes"
    ):
        await fetch(fetcher(port), f"http://a.example:{port}/", path)


async def test_without_room_nothing_is_read(host: ImageHost, port: int, path: Path) -> None:
    with pytest.raises(NoRoom):
        await fetch(fetcher(port), f"http://a.example:{port}/", path, Room(len(BODY) - 1))
    assert read(path) == b""
    host.answers["/"] = answer(content_length="") + BODY
    with pytest.raises(NoRoom):
        await fetch(fetcher(port), f"http://a.example:{port}/", path, Room(len(BODY) - 1))
    assert read(path) == b""


async def test_a_full_disk_is_no_fault_of_the_image(host: ImageHost, port: int) -> None:
    one = fetcher(port)
    with pytest.raises(OSError, match="No space left"):
        await one.fetch(f"http://a.example:{port}/", "/dev/full", Room())
    one.close()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(9)


async def dripping(writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        for byte in answer(BODY):
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("slow", [silent, dripping])
async def test_a_slow_server_has_so_much_time_in_all(
    host: ImageHost, port: int, path: Path, slow: Any
) -> None:
    host.answers["/"] = slow
    began = time.monotonic()
    with pytest.raises(Refused, match=r"took more than 0\.3 seconds.*--image-fetch-timeout"):
        await fetch(fetcher(port, seconds=0.3), f"http://a.example:{port}/", path)
    assert time.monotonic() - began < 3.0


async def test_all_hops_have_one_time(host: ImageHost, port: int, path: Path) -> None:
    async def later(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        writer.write(answer(b"", 302, location="/later"))

    host.answers["/later"] = later
    with pytest.raises(Refused, match=r"took more than 0\.3 seconds"):
        await fetch(fetcher(port, seconds=0.3), f"http://a.example:{port}/later", path)


async def test_a_slow_name_has_its_time_too(path: Path) -> None:
    async def slow(host: str, port: int) -> Sequence[str]:
        await asyncio.sleep(9)
        return []

    one = Fetcher(Domains(["*"]), max_bytes=MOST, seconds=0.1, resolve=slow)
    with pytest.raises(Refused, match=r"took more than 0\.1 seconds"):
        await fetch(one, "http://a.example/", path)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(host: ImageHost, port: int, path: Path, status: int) -> None:
    host.answers["/old"] = answer(b"moved", status, location="/new?x")
    host.answers["/new?x"] = answer(BODY)
    assert (await fetch(fetcher(port), f"http://a.example:{port}/old", path))[1] == BODY


async def test_no_more_than_three_redirects_are_followed(
    host: ImageHost, port: int, path: Path
) -> None:
    for n in range(3):
        host.answers[f"/{n}"] = answer(b"", 302, location=f"/{n + 1}")
    host.answers["/3"] = answer(BODY)
    assert (await fetch(fetcher(port), f"http://a.example:{port}/0", path))[1] == BODY
    host.answers["/3"] = answer(b"", 302, location="/3")
    with pytest.raises(Refused, match="leads to more than 3 others"):
        await fetch(fetcher(port), f"http://a.example:{port}/3", path)
    assert len(host.requests) == 8


REDIRECTED = {
    "this machine": ("http://127.0.0.1:{port}/", "127.0.0.1:{port} is not allowed"),
    "metadata": ("http://169.254.169.254/latest/meta-data/", "169.254.169.254 has an address"),
    "a private address": ("https://10.0.0.1/", "10.0.0.1 has an address that is not public"),
    "this machine in IPv6": ("http://[::1]/", "::1 has an address that is not public"),
    "IPv4 in IPv6": ("http://[::ffff:127.0.0.1]/", "has an address that is not public"),
    "a decimal": ("http://2130706433/", "must have the form 192.0.2.1"),
    "a name of a private address": ("http://b.example:{port}/", "not public"),
    "another port": ("http://a.example:22/", "a.example:22 is not allowed"),
    "a file": ("file:///etc/passwd", "neither http nor https"),
    "gopher": ("gopher://a.example/", "neither http nor https"),
    "a password": ("http://a:b@a.example/", "must not have a user's name or password"),
    "control characters": ("http://a.example/\x01", "control characters|answer in HTTP"),
}


@pytest.mark.parametrize(("to", "why"), REDIRECTED.values(), ids=REDIRECTED)
async def test_each_hop_is_checked(
    host: ImageHost, port: int, path: Path, to: str, why: str
) -> None:
    # CVE-2025-6242, CVE-2026-63764: what a redirect leads to was not checked.
    host.answers["/"] = answer(b"", 302, location=to.format(port=port))
    names = Names(a=[["127.0.0.1"]], b=[["169.254.169.254"]])
    with pytest.raises(Refused, match=why.format(port=port)):
        await fetch(fetcher(port, names), f"http://a.example:{port}/", path)
    assert len(host.requests) == 1


async def test_a_name_is_asked_for_once_and_the_answer_is_connected_to(
    host: ImageHost, port: int, path: Path
) -> None:
    # A name whose second answer differs: the check would see the first one, the connection the
    # second.
    host.answers["/again"] = answer(b"", 302, location="/")
    names = Names(a=[["127.0.0.1"], ["169.254.169.254"]])
    one = fetcher(port, names)
    await one.fetch(f"http://a.example:{port}/", str(path), Room())
    assert names.asked == ["a.example"]
    with pytest.raises(Refused, match="has an address that is not public"):
        await fetch(one, f"http://a.example:{port}/again", path)
    assert len(host.requests) == 1


async def test_one_private_address_among_public_ones_is_enough_to_refuse(
    host: ImageHost, port: int, path: Path
) -> None:
    names = Names(c=[[PUBLIC, "127.0.0.1"]])
    with pytest.raises(Refused, match=r"c\.example has an address that is not public"):
        await fetch(fetcher(port, names), "http://c.example/", path)


async def test_loopback_is_closed_where_nobody_opened_it(
    host: ImageHost, port: int, path: Path
) -> None:
    for domains in (Domains(["*", f"a.example:{port}"]), Domains(["*"], private=True)):
        one = Fetcher(domains, max_bytes=MOST, seconds=5, resolve=Names(a=[["127.0.0.1"]]))
        with pytest.raises(Refused, match=r"not public|not allowed"):
            await fetch(one, f"http://a.example:{port}/", path)
    assert host.requests == []


async def test_the_system_resolves_names_and_numbers_are_not_asked_for(
    host: ImageHost, port: int, path: Path
) -> None:
    domains = Domains([f"localhost:{port}", f"127.0.0.1:{port}"], private=True)
    one = Fetcher(domains, max_bytes=MOST, seconds=5)
    await one.fetch(f"http://localhost:{port}/", str(path), Room())
    assert read(path) == BODY
    none = Names()
    one = Fetcher(domains, max_bytes=MOST, seconds=5, resolve=none)
    await fetch(one, f"http://127.0.0.1:{port}/", path)
    assert none.asked == []


async def test_the_next_address_is_tried(host: ImageHost, port: int, path: Path) -> None:
    names = Names(a=[["127.0.0.2", "127.0.0.1"]])
    assert (await fetch(fetcher(port, names), f"http://a.example:{port}/", path))[1] == BODY


async def test_a_host_that_is_not_there_is_named(path: Path, unused_tcp_port: int) -> None:
    port = unused_tcp_port
    with pytest.raises(Refused, match=r"there is no host x\.example"):
        await fetch(fetcher(port), "http://x.example/", path)
    with pytest.raises(Refused, match=rf"a\.example:{port} takes no connections"):
        await fetch(fetcher(port), f"http://a.example:{port}/", path)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of a.example, with its key."""
    file = tmp_path_factory.mktemp("tls") / "a.pem"
    name = ["-subj", "/CN=a.example", "-addext", "subjectAltName=DNS:a.example"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    command += ["-nodes", "-keyout", str(file), "-out", f"{file}.crt", "-days", "2", *name]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


async def test_tls_verifies_the_name_and_not_the_address(path: Path, certificate: Path) -> None:
    host = ImageHost()
    host.answers["/"] = answer(BODY)
    serving = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    serving.load_cert_chain(certificate)
    port = await host.start(serving)
    trusting = ssl.create_default_context(cafile=f"{certificate}.crt")
    names = Names(a=[["127.0.0.1"]], b=[["127.0.0.1"]])
    one = fetcher(port, names, tls=trusting)
    await one.fetch(f"https://a.example:{port}/", str(path), Room())
    assert read(path) == BODY
    with pytest.raises(Refused, match=r"b\.example has no certificate that is valid for it"):
        await one.fetch(f"https://b.example:{port}/", str(path), Room())
    with pytest.raises(Refused, match=r"a\.example has no certificate that is valid for it"):
        await fetch(fetcher(port), f"https://a.example:{port}/", path)
    await host.stop()


async def test_no_tls_where_it_was_asked_for_is_said(
    host: ImageHost, port: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CONNECT_SECONDS", 0.2)
    with pytest.raises(Refused, match=r"a\.example has no certificate|takes no connections"):
        await fetch(fetcher(port), f"https://a.example:{port}/", path)


@pytest.mark.parametrize(
    ("control", "seconds"),
    [
        ("", 60.0),
        ("public", 60.0),
        ("public, max-age=5", 5.0),
        ("Max-Age=31536000, immutable", 3600.0),
        ("s-maxage=9", 60.0),
        ("no-store, max-age=9", 0.0),
        ("no-cache", 0.0),
        ("max-age=0", 0.0),
    ],
)
async def test_a_url_stands_for_its_bytes_as_long_as_its_server_says(
    host: ImageHost, port: int, path: Path, control: str, seconds: float
) -> None:
    host.answers["/"] = answer(BODY, cache_control=control)
    fetched, _ = await fetch(fetcher(port), f"http://a.example:{port}/", path)
    assert fetched.seconds == seconds


async def test_the_loop_goes_on_while_ten_are_fetched(
    host: ImageHost, port: int, tmp_path: Path
) -> None:
    async def large(writer: asyncio.StreamWriter) -> None:
        writer.write(answer(content_length=str(4 << 20)))
        for _ in range(64):
            writer.write(bytes(1 << 16))
            await writer.drain()

    host.answers["/"] = large
    one = fetcher(port, max_bytes=8 << 20)
    url = f"http://a.example:{port}/"
    fetches = [
        asyncio.create_task(one.fetch(url, str(tmp_path / str(n)), Room(8 << 20)))
        for n in range(10)
    ]
    n_turns = 0
    while not all(task.done() for task in fetches):
        await asyncio.sleep(0)
        n_turns += 1
    await asyncio.gather(*fetches)
    one.close()
    assert [len(read(tmp_path / str(n))) for n in range(10)] == [4 << 20] * 10
    assert n_turns > 40


async def test_few_are_fetched_at_once_and_clients_take_turns(
    host: ImageHost, port: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go = asyncio.Event()
    n_open = most_open = 0

    async def wait(writer: asyncio.StreamWriter) -> None:
        nonlocal n_open, most_open
        n_open += 1
        most_open = max(most_open, n_open)
        await go.wait()
        writer.write(answer(BODY))
        n_open -= 1

    host.answers["/"] = wait
    one = fetcher(port)
    one._turns = Turns(3, 2, 5)
    ended: list[str] = []

    async def visit(client: str) -> None:
        CLIENT.set(client)
        await one.fetch(f"http://a.example:{port}/", str(path), Room())
        ended.append(client)

    visits = [asyncio.create_task(visit(client)) for client in "aaaaabb"]
    async with asyncio.timeout(5):
        while n_open < 3:  # noqa: ASYNC110 - it is no event
            await asyncio.sleep(0.01)
    visits.append(asyncio.create_task(visit("c")))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await visit("d")
    go.set()
    await asyncio.gather(*visits)
    assert most_open == 3
    assert ended.index("c") < 6
    assert sorted(ended) == list("aaaaabbc")
    one.close()


async def test_a_hanging_resolver_holds_up_nobody_else(
    host: ImageHost, port: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hanging, end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def lookup(name: str, *_: Any, **__: Any) -> list[Any]:
        if name == "slow.example":
            loop.call_soon_threadsafe(hanging.set)
            end.wait(20)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    domains = Domains([f"a.example:{port}", f"slow.example:{port}"], private=True)
    one = Fetcher(domains, max_bytes=MOST, seconds=20)
    slow = asyncio.create_task(one.fetch(f"http://slow.example:{port}/", str(path), Room()))
    await hanging.wait()
    await one.fetch(f"http://a.example:{port}/", str(path), Room())
    assert not slow.done()
    assert len(host.requests) == 1
    end.set()
    await slow
    one.close()
