"""Two servers behind real proxies, with the configurations that docs/deploy/proxy.md shows."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest

from tests.doubles.fake_engine_run import DEADLINE, ROOT
from tests.doubles.fake_server import READY, FakeServer
from tests.doubles.fake_worker import Behaviour
from tests.helpers.resuming import client as resuming_client

pytestmark = pytest.mark.full

PAGE = ROOT / "docs" / "deploy" / "proxy.md"
N_STREAMS = 64
SHORT_PER_SECOND = 100
NGINX_FOLDERS = "".join(
    f"{kind}_temp_path {kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
)
COMMANDS = {
    "haproxy": ("haproxy", "-db", "-f", "{config}"),
    "nginx": ("nginx", "-p", "{folder}", "-c", "{config}", "-e", "stderr", "-g"),
    "envoy": ("envoy", "--use-dynamic-base-id", "--concurrency", "1", "-c", "{config}"),
}
LANGUAGES = {"haproxy": "haproxy", "nginx": "nginx", "envoy": "yaml"}


def block(language: str) -> str:
    """The configuration of this language in the page."""
    found = re.search(rf"^```{language}\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found, language
    return found[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


class Site:
    """Two servers, and a proxy in front of them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._n_started = 0
        self._ports = [free_port(), free_port()]
        self._proxy: subprocess.Popen[bytes] | None = None
        self.servers: list[FakeServer] = []
        self.url = ""

    def start(self, name: str, change: Callable[[str], str]) -> None:
        self.servers += [self._start(one) for one in self._ports]
        for server in self.servers:
            server.until_logged(READY)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._proxy = self._start_proxy(name, change(block(LANGUAGES[name])), port)
        deadline = time.monotonic() + DEADLINE
        while not self._answers():
            assert self._proxy.poll() is None, self._proxy_log.read_text()
            assert time.monotonic() < deadline, self._proxy_log.read_text()
            time.sleep(0.05)

    def _start(self, port: int) -> FakeServer:
        self._n_started += 1
        folder = self._folder / f"server{self._n_started}"
        folder.mkdir()
        behaviour = Behaviour(
            step_seconds=0.05, n_blocks=8192, max_total_tokens=1024, max_batch_prefill_tokens=1024
        )
        flags = (
            "--port",
            str(port),
            "--shutdown-delay",
            "5",
            "--access-log",
            "--resume-window",
            "30",
        )
        return FakeServer(folder, behaviour, *flags, "--forwarded-allow-ips", "127.0.0.1")

    def _start_proxy(self, name: str, text: str, port: int) -> subprocess.Popen[bytes]:
        for before, after in (("10.0.0.1", self._ports[0]), ("10.0.0.2", self._ports[1])):
            text = text.replace(f"{before}:3000", f"127.0.0.1:{after}")
            text = text.replace(f"{before}, port_value: 3000", f"127.0.0.1, port_value: {after}")
        text = text.replace("10.0.0.9:8000", f"127.0.0.1:{port}")
        text = text.replace("10.0.0.9, port_value: 8000", f"127.0.0.1, port_value: {port}")
        assert "10.0.0" not in text
        # Places of this machine's that the page leaves to the package.
        text = text.replace("http {\n", f"http {{\n access_log off; {NGINX_FOLDERS}\n")
        folder = self._folder / "proxy"
        folder.mkdir()
        config = folder / f"config.{LANGUAGES[name]}"
        config.write_text(text)
        command = [one.format(config=config, folder=folder) for one in COMMANDS[name]]
        if name == "nginx":
            user = "user root;" if os.geteuid() == 0 else ""
            command.append(f"daemon off; pid nginx.pid; {user}")
        with self._proxy_log.open("wb") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    @property
    def _proxy_log(self) -> Path:
        return self._folder / "proxy" / "log"

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.url}/info").status_code == 200
        except httpx.TransportError:
            return False

    def replace(self, number: int) -> None:
        """Stop a server as an orchestrator does, and start another one in its place."""
        self.servers[number].signal(signal.SIGTERM)
        assert self.servers[number].ended() == 0
        self.servers[number] = self._start(self._ports[number])
        self.servers[number].until_logged(READY)

    def stop(self) -> None:
        if self._proxy is not None:
            self._proxy.terminate()  # nginx's processes outlive one that is killed
            self._proxy.wait(DEADLINE)
        for server in self.servers:
            server.process.kill()
            server.process.wait(DEADLINE)


Build = Callable[..., Site]


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Build]:
    built: list[Site] = []

    def site(name: str, change: Callable[[str], str] = str) -> Site:
        if shutil.which(name) is None:
            pytest.skip(f"there is no {name} here")
        built.append(Site(tmp_path))
        built[-1].start(name, change)
        return built[-1]

    yield site
    for one in built:
        one.stop()


proxies = pytest.mark.parametrize("name", list(COMMANDS))


@proxies
def test_a_stream_arrives_token_by_token(build: Build, name: str) -> None:
    site = build(name)
    body = {"inputs": "Hi", "parameters": {"max_new_tokens": 20}}
    moments = []
    with httpx.stream("POST", f"{site.url}/generate_stream", json=body, timeout=60) as reply:
        assert reply.headers["content-type"] == "text/event-stream"
        for line in reply.iter_lines():
            if line.startswith("data:"):
                moments.append(time.monotonic())
    assert len(moments) == 20
    apart = sum(after - before > 0.02 for before, after in pairwise(moments))
    assert apart >= 15


@proxies
def test_the_address_of_a_client_is_seen(build: Build, name: str) -> None:
    site = build(name)
    with httpx.Client(transport=httpx.HTTPTransport(local_address="127.0.0.7")) as client:
        invented = {"x-forwarded-for": "8.8.8.8", "x-request-id": "seen"}
        assert client.get(f"{site.url}/info", headers=invented).status_code == 200
    logs = site.servers[0].log + site.servers[1].log
    assert re.search("127.0.0.7 GET /info 200 .* request_id=seen", logs)


class Client:
    """A connection that is kept: by hand, as a library would take the processor time that the test
    has for the servers."""

    def __init__(self, url: str) -> None:
        self._host, port = url.removeprefix("http://").split(":")
        self._port = int(port)
        self._reader: asyncio.StreamReader | None = None

    async def post(self, path: str, n_tokens: int) -> tuple[int, bytes]:
        """Status and body of a reply. Raises OSError or EOFError where there is no whole one."""
        body = json.dumps({"inputs": "Hi", "parameters": {"max_new_tokens": n_tokens}}).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        if self._reader is None:
            self._reader, self._writer = await asyncio.open_connection(self._host, self._port)
        reader = self._reader
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        reply = (await reader.readuntil(b"\r\n\r\n")).lower()
        if length := re.search(rb"\r\ncontent-length: (\d+)", reply):
            found = await reader.readexactly(int(length[1]))
        else:
            assert b"\r\ntransfer-encoding: chunked" in reply
            found = await reader.readuntil(b"\r\n0\r\n\r\n")
        if b"\r\nconnection: close" in reply:
            self.close()
        return int(reply.split()[1]), found

    def close(self) -> None:
        if self._reader is not None:
            self._writer.close()
            self._reader = None


class Load:
    """Clients that go on until they are told to stop, and what they lost."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._over = asyncio.Event()
        self._idle: list[Client] = []
        self.failures: list[str] = []
        self.n_streams = self.n_short = 0

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(N_STREAMS):
                group.create_task(self._streams())
            began, n = time.monotonic(), 0
            while not self._over.is_set():
                n += 1
                group.create_task(self._short())
                await asyncio.sleep(began + n / SHORT_PER_SECOND - time.monotonic())
        for client in self._idle:
            client.close()

    def end(self) -> None:
        self._over.set()

    async def _streams(self) -> None:
        client = Client(self._url)
        while not self._over.is_set():
            await self._post(client, "/generate_stream", 20)
            self.n_streams += 1
        client.close()

    async def _short(self) -> None:
        client = self._idle.pop() if self._idle else Client(self._url)
        await self._post(client, "/generate", 1)
        self._idle.append(client)
        self.n_short += 1

    async def _post(self, client: Client, path: str, n_tokens: int) -> None:
        try:
            status, body = await client.post(path, n_tokens)
        except (OSError, EOFError) as error:
            self.failures.append(f"{path}: {error!r}")
            client.close()
            return
        if status != 200 or body.count(b'"generated_text":"') != 1:
            self.failures.append(f"{path}: {status} {body[-200:]!r}")


@proxies
async def test_replacing_both_servers_under_load_loses_nothing(build: Build, name: str) -> None:
    site = await asyncio.to_thread(build, name)
    load = Load(site.url)
    running = asyncio.create_task(load.run())
    await asyncio.sleep(2)
    for number in range(2):
        await asyncio.to_thread(site.replace, number)
        await asyncio.sleep(3)
    load.end()
    await running
    assert load.failures == []
    print(f"{name}: {load.n_streams} streams and {load.n_short} short requests")
    assert load.n_streams > 2 * N_STREAMS
    assert load.n_short > 10 * SHORT_PER_SECOND


@proxies
def test_a_stream_whose_server_is_killed_goes_on_at_the_other_one(build: Build, name: str) -> None:
    site = build(name)
    body = {"prompt": "Hi", "max_tokens": 100, "temperature": 1, "seed": 7, "stream": True}

    def read(ahead: int) -> str:
        """The text; behind so many events the server that computes it is killed."""
        found = []
        for n, payload in enumerate(resuming_client()(f"{site.url}/v1/completions", body)):
            if n == ahead:
                metrics = [httpx.get(f"{one.url}/metrics").text for one in site.servers]
                busy = ["\ntgi_async_requests_running 1" in one for one in metrics]
                assert sorted(busy) == [False, True]
                killed = site.servers[busy.index(True)]
                killed.signal(signal.SIGKILL)
                killed.process.wait(DEADLINE)
            found.append(payload)
        assert found.pop() == "[DONE]"
        return "".join(json.loads(one)["choices"][0]["text"] for one in found)

    whole = read(-1)
    assert len(whole) == 100
    assert read(20) == whole
    assert "goes on, computed again" in "".join(server.log for server in site.servers)


def by_prefix_in_haproxy(text: str) -> str:
    return text.replace("    balance leastconn\n", block("haproxy-prefix"))


def by_prefix_in_nginx(text: str) -> str:
    text = text.replace("http {\n", "http {\n" + block("nginx-prefix"))
    return text.replace("least_conn;", "hash $prefix consistent;")


def homes(site: Site, key: Callable[[int], dict[str, str]]) -> list[int]:
    """The servers that get what is alike; each kind is asked for three times."""
    kinds, tails = range(24), range(3)
    for kind in kinds:
        for tail in tails:
            text = f"{kind} " * 300 if "authorization" not in key(kind) else ""
            body = {"inputs": f"{text}{tail}", "parameters": {"max_new_tokens": 1}}
            headers = {"x-request-id": f"ask-{kind}-{tail}.", **key(kind)}
            reply = httpx.post(f"{site.url}/generate", json=body, headers=headers)
            assert reply.status_code == 200
            # A line is written a moment after its reply.
            deadline = time.monotonic() + DEADLINE
            while not any(f"id=ask-{kind}-{tail}. user" in server.log for server in site.servers):
                assert time.monotonic() < deadline
    found = []
    for kind in kinds:
        counts = [
            len(set(re.findall(rf"id=ask-{kind}-(\d)\. user", server.log)))
            for server in site.servers
        ]
        assert sorted(counts) == [0, len(tails)]
        found.append(counts.index(len(tails)))
    return found


@pytest.mark.parametrize(
    ("name", "change"), [("haproxy", by_prefix_in_haproxy), ("nginx", by_prefix_in_nginx)]
)
def test_prompts_that_begin_alike_go_to_one_server(
    build: Build, name: str, change: Callable[[str], str]
) -> None:
    assert set(homes(build(name, change), lambda number: {})) == {0, 1}


def by_tenant_in_haproxy(text: str) -> str:
    return by_prefix_in_haproxy(text).replace("req.body,bytes(0,512)", "req.hdr(authorization)")


def by_tenant_in_nginx(text: str) -> str:
    return text.replace("least_conn;", "hash $http_authorization consistent;")


def by_tenant_in_envoy(text: str) -> str:
    policy = "hash_policy: [{header: {header_name: authorization}}]"
    text = text.replace("timeout: 0s\n", f"timeout: 0s\n{' ' * 28}{policy}\n")
    return text.replace("LEAST_REQUEST", "RING_HASH")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("haproxy", by_tenant_in_haproxy),
        ("nginx", by_tenant_in_nginx),
        ("envoy", by_tenant_in_envoy),
    ],
)
def test_requests_with_one_key_go_to_one_server(
    build: Build, name: str, change: Callable[[str], str]
) -> None:
    site = build(name, change)
    assert set(homes(site, lambda number: {"authorization": f"Bearer {number}"})) == {0, 1}
