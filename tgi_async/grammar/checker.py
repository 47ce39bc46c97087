"""Check clients' grammars before a worker gets them, in processes with limits.

See `check_process` for what is tried. Checks are kept by content, refusals too, so that a
schema that comes with every request costs once; and one that comes twice at once is tried once.
"""

from __future__ import annotations

import asyncio
import signal
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from hashlib import blake2b

import msgspec

from tgi_async import processes
from tgi_async.errors import Overloaded
from tgi_async.grammar.check import CheckerStart, GrammarCheck, seconds_for
from tgi_async.grammar.grammar import Grammar, encode
from tgi_async.subprocess_pool.pool import ProcessEnded, ProcessPool

COMMAND = processes.command("workers.grammar.check_process")
PROCESSES = 2
SECONDS = 0.25
"""Processor seconds for a short grammar; see `check.seconds_for`."""
PATIENCE = 30.0
"""Seconds on the clock for one grammar, however busy the machine."""
MAX_WAITING = 64
"""Grammars that may wait for a process; more are refused, as the server is overloaded."""
MAX_KEPT = 1024
MAX_KEPT_CHARACTERS = 16 << 20
"""Characters of all checks that are kept."""
MAX_CHARACTERS = 2_000_000
"""Most characters of an encoded grammar."""


class GrammarChecker:
    """Checks grammars for one model. For one event loop.

    The first process is started by `prepare`, the others when they are needed.
    """

    def __init__(
        self,
        model_path: str,
        vocab_size: int,
        end_ids: Sequence[int],
        *,
        n_processes: int = PROCESSES,
        seconds: float = SECONDS,
        patience: float = PATIENCE,
    ) -> None:
        start = CheckerStart(model_path, vocab_size, list(end_ids), seconds)
        self._seconds = seconds
        self._pool = ProcessPool(
            COMMAND,
            msgspec.json.encode(start),
            n_processes=n_processes,
            name="grammar check",
            patience=patience,
        )
        self._known: OrderedDict[bytes, GrammarCheck] = OrderedDict()
        self._n_characters = 0
        self._under_way: dict[bytes, asyncio.Task[GrammarCheck]] = {}

    def prepare(self) -> None:
        """Start a process, which loads the engine while nothing waits for it."""
        self._pool.prepare()

    async def check(self, grammar: Grammar) -> GrammarCheck:
        """Return whether workers may get it. Raises Overloaded."""
        try:
            encoded = encode(grammar)
            line = encoded.encode()
        except (UnicodeEncodeError, ValueError, RecursionError, OverflowError):
            return GrammarCheck(refusal="it is nested too deep, or not made of text and numbers")
        if len(line) > MAX_CHARACTERS:
            return GrammarCheck(refusal=f"it is longer than {MAX_CHARACTERS} characters")
        key = blake2b(line, digest_size=16).digest()
        known = self._known.get(key)
        if known is not None:
            self._known.move_to_end(key)
            return known
        task = self._under_way.get(key)
        if task is None:
            if len(self._under_way) >= MAX_WAITING:
                raise Overloaded("Too many grammars are being checked")
            task = asyncio.create_task(self._check(key, line))
            self._under_way[key] = task
            task.add_done_callback(lambda _: self._under_way.pop(key, None))
        # Another request may wait for the same check: it goes on when this request is cancelled.
        return await asyncio.shield(task)

    async def _check(self, key: bytes, line: bytes) -> GrammarCheck:
        loop = asyncio.get_running_loop()
        try:
            reply = await loop.run_in_executor(self._pool.threads, self._pool.ask, line)
        except ProcessEnded as ended:
            with suppress(RuntimeError):  # the server is stopping
                self._pool.threads.submit(self._pool.prepare)
            check = GrammarCheck(refusal=self._why(ended, len(line)))
        else:
            check = msgspec.json.decode(reply, type=GrammarCheck)
        self._keep(key, check)
        return check

    def _why(self, ended: ProcessEnded, length: int) -> str:
        if ended.status == -signal.SIGPROF:
            seconds = seconds_for(length, self._seconds)
            return f"compiling it took more than {seconds:.2g} seconds"
        return f"compiling it ended its process (status {ended.status})"

    def _keep(self, key: bytes, check: GrammarCheck) -> None:
        self._known[key] = check
        self._n_characters += len(check.grammar)
        while len(self._known) > MAX_KEPT or self._n_characters > MAX_KEPT_CHARACTERS:
            _, oldest = self._known.popitem(last=False)
            self._n_characters -= len(oldest.grammar)

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
