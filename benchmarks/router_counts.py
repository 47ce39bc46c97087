"""The router's work for a token, counted rather than timed, so that every machine agrees.

    python -m benchmarks.router_counts

The whole router runs in this process, from the frames of the worker to the bytes for a client's
socket: wire, core, engine, handlers, HTTP server. Only the ends are replaced: the ZeroMQ sockets,
and the transports of the connections. Nothing but tokens is streamed between two counts.

- calls: of functions, Python's and C's, as a profiler sees them;
- blocks: memory blocks that are still held afterwards;
- wire bytes: frames from and to the worker;
- writes: pieces that are handed to a socket.

- single: a step is done when everybody has seen the one before;
- router behind: a step is done as soon as it is sent;
- client behind: no client takes anything until all steps are done.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import uvicorn
import uvloop
from uvicorn.server import ServerState

from benchmarks.calls import Calls, allocated_blocks
from benchmarks.router import TEXT, Route, prepared
from benchmarks.router_worker import MadeUpRows, Pace, ready
from tgi_async import supervisor
from tgi_async.api.app import create_app
from tgi_async.api.dialect import OURS
from tgi_async.api.limits import Limits
from tgi_async.connection import Connection
from tgi_async.engine import Engine
from tgi_async.telemetry.metrics import Metrics
from tgi_async.telemetry.observer import Observer
from tgi_async.text.sampling_defaults import SamplingDefaults
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.codec import to_router_codec, to_worker_codec
from tgi_async.wire.messages import (
    BatchConfig,
    ModelConfig,
    Ready,
    Start,
    Step,
    StepDone,
    Stop,
    ToRouter,
    ToWorker,
)

SLEEPER = (sys.executable, "-c", "import signal; signal.pause()")
"""The process of a worker, which has nothing to do here."""
QUIET_TURNS = 8
"""Turns of the event loop after the last write, after which the handlers wait for the next
token."""


Mode = Literal["single", "router behind", "client behind"]
MODES: tuple[Mode, ...] = get_args(Mode)


class Counts(msgspec.Struct):
    """Figures for each token, but for `n_tokens`."""

    n_tokens: int
    calls: float
    blocks: float
    wire_bytes: float
    writes: float
    events: float


class Frames:
    """Both ends of the wire, and a worker that does a step when it is allowed to."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._rows = MadeUpRows(pace.tokens)
        self._to_worker, self._to_router = to_worker_codec(), to_router_codec()
        self._steps: deque[bytes] = deque()
        self._replies: deque[bytes] = deque()
        self._replied = asyncio.Event()
        self.n_let = 0
        """Steps that may be done as soon as they are sent."""
        self.n_bytes = 0
        self.n_running = 0
        """Rows of the last step that was done."""

    def channel(self, folder: Path, epoch: int, world_size: int) -> Frames:
        """Return itself, in place of RouterChannel."""
        return self

    def send(self, message: ToWorker) -> None:
        frame = self._to_worker.encode(message)
        self.n_bytes += len(frame)
        if isinstance(message, Start):
            self._reply(ready(message, self._pace))
        elif not isinstance(message, Stop):
            self._steps.append(frame)
            self.work()

    def poll(self) -> ToRouter | None:
        return self._to_router.decode(self._replies.popleft()) if self._replies else None

    async def wait(self) -> None:
        await self._replied.wait()
        self._replied.clear()

    def wake(self) -> None:
        self._replied.set()

    def close(self) -> None:
        """Nothing is open."""

    def let(self, n: int) -> None:
        """Allow `n` more steps."""
        self.n_let += n
        self.work()

    def work(self) -> None:
        while self._steps and self.n_let:
            self.n_let -= 1
            step = self._to_worker.decode(self._steps.popleft())
            assert isinstance(step, Step)
            self.n_running = len(step.run)
            self._reply(self._rows.execute(step))

    def _reply(self, message: Ready | StepDone) -> None:
        frame = self._to_router.encode(message)
        self.n_bytes += len(frame)
        self._replies.append(frame)
        self._replied.set()


class Tally:
    """The output of all clients."""

    def __init__(self) -> None:
        self.n_writes = self.n_events = 0


class Socket(asyncio.Transport):
    """A client that takes everything, and only counts it."""

    def __init__(self, tally: Tally) -> None:
        super().__init__({"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)})
        self._tally = tally

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        self._tally.n_writes += 1
        self._tally.n_events += bytes(data).count(b"data:")

    def is_closing(self) -> bool:
        return False

    def close(self) -> None:
        """There is no socket."""


def limits(n_requests: int, resume_window: int = 0) -> Limits:
    """Return the limits of a server without any flags, but for the number of requests, and a
    window in which streams can be resumed."""
    return Limits(
        model_id="made-up",
        model_names=("made-up",),
        revision=None,
        model_pipeline_tag="text-generation",
        quantization=None,
        weight_bytes=0,
        kv_cache_dtype="none",
        max_drafts=0,
        max_concurrent_requests=n_requests,
        max_best_of=2,
        max_stop_sequences=4,
        max_top_n_tokens=5,
        max_input_tokens=4096,
        max_total_tokens=8192,
        max_client_batch_size=4,
        validation_workers=1,
        payload_limit=2_000_000,
        api_key=None,
        key_file=None,
        request_timeout=None,
        prefix_cache_salt="none",
        cors_allow_origin=(),
        sampling_defaults=SamplingDefaults(),
        dialect=OURS,
        tool_call_parser=None,
        kserve=False,
        resume_window=resume_window,
        root_path=None,
    )


class Router:
    """A router, its worker's frames and its clients."""

    def __init__(self, frames: Frames, make: Callable[[], Connection]) -> None:
        self.frames = frames
        self.tally = Tally()
        self._make = make
        self._protocols: list[Connection] = []

    def ask(self, route: Route) -> None:
        """Open a stream."""
        protocol = self._make()
        protocol.connection_made(Socket(self.tally))
        data = route.body.encode()
        head = (
            f"POST {route.path} HTTP/1.1\r\nhost: made-up\r\ncontent-type: application/json\r\n"
            f"content-length: {len(data)}\r\n\r\n"
        )
        protocol.data_received(head.encode() + data)
        self._protocols.append(protocol)

    async def begin(self) -> None:
        """Return when every stream has had a token and is about to have another."""
        async with asyncio.timeout(60):
            while self.frames.n_running < len(self._protocols):
                await asyncio.sleep(0.001)  # prompts are tokenized in threads
                self.frames.let(1)
        await self.steps(8, "single")

    async def steps(self, n: int, mode: Mode) -> None:
        """Have `n` steps done, with all their consequences."""
        if mode == "client behind":
            for protocol in self._protocols:
                protocol.pause_writing()
        for _ in range(1 if mode == "router behind" else n):
            self.frames.let(n if mode == "router behind" else 1)
            await self._settle()
        if mode == "client behind":
            for protocol in self._protocols:
                protocol.resume_writing()
            await self._settle()

    async def _settle(self) -> None:
        quiet, before = 0, self.tally.n_writes
        while quiet < QUIET_TURNS or self.frames.n_let:
            await asyncio.sleep(0)
            quiet = quiet + 1 if before == self.tally.n_writes else 0
            before = self.tally.n_writes

    def hang_up(self) -> None:
        for protocol in self._protocols:
            protocol.connection_lost(None)


@asynccontextmanager
async def router(
    tokenizer: Tokenizer, tokens: list[int], n_requests: int, resume_window: int = 0
) -> AsyncIterator[Router]:
    """Yield a router in this process. It has no chat template."""
    frames = Frames(Pace(tokens, 0.0, n_blocks=65_536))
    start = Start(ModelConfig(""), BatchConfig(n_requests))
    real = supervisor.RouterChannel  # type: ignore[attr-defined]
    supervisor.RouterChannel = frames.channel  # type: ignore[attr-defined, assignment]
    engine = Engine(tokenizer=tokenizer, start=start, command=SLEEPER)
    try:
        await engine.launch(lambda loading: None)
        given = limits(n_requests, resume_window)
        metrics = Metrics(
            max_input_tokens=given.max_input_tokens,
            max_total_tokens=given.max_total_tokens,
            max_batch_total_tokens=1 << 20,
        )
        engine.serve(metrics)
        app = create_app(
            engine=engine, tokenizer=tokenizer, chat_template=None, limits=given, metrics=metrics
        )
        config = uvicorn.Config(
            Observer(app),
            http=Connection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
        )
        config.load()
        state = ServerState()
        found = Router(frames, lambda: Connection(config, state, {}))
        yield found
        found.hang_up()
        while state.tasks:
            await asyncio.wait(state.tasks)
        if app.state.streams is not None:
            await app.state.streams.close()
    finally:
        await engine.stop(0)
        supervisor.RouterChannel = real  # type: ignore[attr-defined]  # where it is made


async def count(
    tokenizer: Tokenizer,
    tokens: list[int],
    route: Route,
    *,
    n_streams: int = 16,
    n_steps: int = 64,
    mode: Mode = "single",
    resume_window: int = 0,
) -> Counts:
    """Count `n_steps` steps of `n_streams` streams that have begun, each of which asked `route`."""
    async with router(tokenizer, tokens, n_streams, resume_window) as one:
        for _ in range(n_streams):
            one.ask(route)
        await one.begin()
        await one.steps(n_steps, mode)  # what is made once is made now
        n_calls = await calls_of(one, n_steps, mode)
        n_events, n_writes = one.tally.n_events, one.tally.n_writes
        n_bytes = one.frames.n_bytes
        n_blocks = allocated_blocks()
        await one.steps(n_steps, mode)
        n_blocks = allocated_blocks() - n_blocks
        n_tokens = n_steps * n_streams
        return Counts(
            n_tokens,
            round(n_calls / n_tokens, 2),
            round(n_blocks / n_tokens, 2),
            round((one.frames.n_bytes - n_bytes) / n_tokens, 2),
            round((one.tally.n_writes - n_writes) / n_tokens, 3),
            round((one.tally.n_events - n_events) / n_tokens, 3),
        )


async def calls_of(one: Router, n_steps: int, mode: Mode) -> int:
    """Count calls of the router's functions. Those of the worker, another process, are excluded."""
    calls = Calls()
    work = one.frames.work

    def unseen() -> None:
        calls.__exit__()
        work()
        calls.__enter__()

    one.frames.work = unseen  # type: ignore[method-assign]
    with calls:
        await one.steps(n_steps, mode)
    one.frames.work = work  # type: ignore[method-assign]
    return calls.n


def main() -> None:
    parser = argparse.ArgumentParser(description="What the router does for a token, counted.")
    parser.add_argument(
        "--route", nargs="+", choices=("generate", "completions"), default=["generate"]
    )
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--steps", type=int, default=64)
    given = parser.parse_args()
    tokenizer = Tokenizer.from_folder(Path(json.loads(prepared())["path"]))
    tokens = tokenizer.encode(TEXT)
    for name in given.route:
        for mode in MODES:
            route = Route.named(name, 4000)
            counts = uvloop.run(
                count(
                    tokenizer,
                    tokens,
                    route,
                    n_streams=given.streams,
                    n_steps=given.steps,
                    mode=mode,
                )
            )
            print(
                f"{mode}, {name}, {counts.n_tokens} tokens, for each: {counts.calls} calls, "
                f"{counts.blocks} blocks, {counts.wire_bytes} wire bytes, {counts.writes} writes, "
                f"{counts.events} events"
            )


if __name__ == "__main__":
    main()
