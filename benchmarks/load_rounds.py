"""One round of one work on one server."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

from benchmarks.load_client import QUOTED_CHARS, UNFINISHED, Exchange, LoadError, Server
from benchmarks.load_works import Work

PAUSE = 3.0
"""Seconds before a round."""
BESIDE_TOKENS = 1024
"""Of a stream beside prompts: more than it gets to."""


@dataclass(slots=True)
class Round:
    """The results of one round. Times in seconds."""

    elapsed: float
    client_cpu: float
    """Processor seconds of this load generator."""
    requests: int
    output_tokens: int = 0
    prompt_tokens: int = 0
    events: int = 0
    unverified: int = 0
    """Requests whose server sent no usage: their tokens are taken to be those asked for."""
    ttft: list[float] = field(default_factory=list)
    gaps: list[float] = field(default_factory=list)
    """Times between two events of one stream."""
    per_token: list[float] = field(default_factory=list)
    """One value a request: first to last event, divided by the output tokens but one."""
    failures: list[str] = field(default_factory=list)
    memory: int | None = None
    """PSS in bytes of the server's processes after the round."""

    def add(self, server: Server, exchange: Exchange, asked: int) -> None:
        """Count one request, or the reason why it failed."""
        stamps: list[float] = []
        prompt_tokens = output_tokens = None
        failure = exchange.failure
        for stamp, payload in exchange.events:
            if payload.strip() == b"[DONE]":
                continue
            try:
                event = json.loads(payload)
                if "error" in event:
                    failure = f"error event: {payload.decode()[:QUOTED_CHARS]}"
                has_token, prompt, output = server.read(event)
            except (ValueError, TypeError, AttributeError):
                failure = failure or f"not understood: {payload[:QUOTED_CHARS]!r}"
                break
            if has_token:
                stamps.append(stamp)
            prompt_tokens = prompt if prompt is not None else prompt_tokens
            output_tokens = output if output is not None else output_tokens
        if failure is None and not stamps:
            failure = "no token came"
        if failure is None and output_tokens not in (None, asked):
            failure = f"{output_tokens} tokens instead of {asked}: is ignore_eos honoured?"
        if failure is not None:
            self.failures.append(failure)
            return
        self.unverified += output_tokens is None
        self.output_tokens += asked
        self.prompt_tokens += prompt_tokens or 0
        self.events += len(stamps)
        self.ttft.append(stamps[0] - exchange.sent_at)
        self.gaps += [later - earlier for earlier, later in pairwise(stamps)]
        if asked > 1:
            self.per_token.append((stamps[-1] - stamps[0]) / (asked - 1))

    def add_beside(self, server: Server, exchange: Exchange, began: float, ended: float) -> None:
        """Count the times between tokens of a stream beside that came in this span, in which it is
        not to end."""
        if exchange.failure != UNFINISHED:
            self.failures.append(f"a stream beside ended: {exchange.failure or 'it was too short'}")
        events = [(at, json.loads(one)) for at, one in exchange.events if one.strip() != b"[DONE]"]
        stamps = [at for at, event in events if began <= at <= ended and server.read(event)[0]]
        self.gaps += [later - earlier for earlier, later in pairwise(stamps)]


async def play(server: Server, work: Work, seed: str, limit: float) -> Round:
    """Run one round of one work on one server, ended after `limit` seconds at the latest."""
    exchanges = [Exchange(server.request(p, work.output_tokens)) for p in work.prompts(seed)]
    beside = [Exchange(server.request(p, BESIDE_TOKENS)) for p in work.prompts_beside(seed)]
    waiting = iter(exchanges)

    async def client() -> None:
        for exchange in waiting:
            await exchange.run(server.host, server.port)

    # A server's threads may go on turning for a while after its last answer, and take the cores
    # from the one whose round is next.
    await asyncio.sleep(PAUSE)
    streams = [asyncio.create_task(one.run(server.host, server.port)) for one in beside]
    cpu, began = time.process_time(), time.perf_counter()
    with suppress(TimeoutError):
        async with asyncio.timeout(limit):
            await asyncio.gather(*(one.begun.wait() for one in beside))
            cpu, began = time.process_time(), time.perf_counter()
            await asyncio.gather(*(client() for _ in range(work.concurrency)))
    ended, cpu = time.perf_counter(), time.process_time() - cpu
    for stream in streams:
        stream.cancel()
    await asyncio.gather(*streams, return_exceptions=True)
    result = Round(elapsed=ended - began, client_cpu=cpu, requests=work.requests)
    for exchange in exchanges:
        result.add(server, exchange, work.output_tokens)
    for exchange in beside:
        result.add_beside(server, exchange, began, ended)
    if server.pid is not None:
        result.memory = tree_memory(server.pid)
    return result


def tree_memory(root: int) -> int:
    """Return the proportional set size in bytes of process `root` and all below it (Linux only)."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # a process may end while it is read
            # After the command's name, which may hold spaces and brackets: state, parent.
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(folder.name))
    total, tree = 0, [root]
    while tree:
        pid = tree.pop()
        tree += children.get(pid, [])
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    if total == 0:
        raise LoadError(f"no memory can be read of process {root}: is it alive, and yours?")
    return total
