"""An engine over fake workers, and what a test wants to know of it."""

from __future__ import annotations

import asyncio
import gc
import json
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour, expected_tokens
from tgi_async.backoff import Backoff
from tgi_async.engine import Engine
from tgi_async.generation import FinishReason, GenerationRequest, Token
from tgi_async.generation_stream import GenerationStream
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import (
    BatchConfig,
    ModelConfig,
    Sampled,
    Sampling,
    SpeculationConfig,
    Start,
)
from tgi_async.worker_restarter import Restarts

ROOT = Path(__file__).parents[2]
DEADLINE = 20.0


class Steps:
    """Metrics that remember in which order steps were sent, done and lost."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.n_cached: list[int] = []
        self.prefills: list[int] = []
        self.n_sampled = 0
        self.n_encoded = 0

    def admitted(self, n_cached: int) -> None:
        self.n_cached.append(n_cached)

    def sampled(self, found: Sequence[Sampled]) -> None:
        self.n_sampled += len(found)

    def encoded(self, n: int, seconds: float) -> None:
        self.n_encoded += n

    def step_sent(
        self, *, n_prefill_tokens: int, n_admitted: int, n_decode: int, plan_seconds: float
    ) -> None:
        self.events.append("sent")
        self.prefills.append(n_prefill_tokens)

    def step(
        self,
        *,
        n_prefill_tokens: int,
        seconds: float,
        forward_seconds: float,
        sample_seconds: float,
        results_seconds: float,
    ) -> None:
        self.events.append("done")

    def step_lost(self, *, n_prefill_tokens: int) -> None:
        self.events.append("lost")


class Collected(NamedTuple):
    """A generation from its beginning to its end."""

    tokens: list[Token]
    finish_reason: FinishReason | None
    n_looks: int

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    @property
    def text(self) -> str:
        return "".join(token.text for token in self.tokens)


async def collect(generation: GenerationStream) -> Collected:
    """Everything until the end. Raises what the generation raises."""
    tokens: list[Token] = []
    reason: FinishReason | None = None
    n_looks = 0
    async for emitted in generation:
        tokens += emitted.tokens
        reason = emitted.finish_reason
        n_looks += 1
    return Collected(tokens, reason, n_looks)


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition` holds. Raises TimeoutError if it never does."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110 - the condition is no event
            await asyncio.sleep(0.005)


def alive(pid: int) -> bool:
    """Whether this process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class Running:
    """A launched engine."""

    def __init__(self, engine: Engine, behaviour: Behaviour, steps: Steps, journal: Path) -> None:
        self.engine = engine
        self.behaviour = behaviour
        self.steps = steps
        self.tokenizer = tiny_tokenizer()
        self._journal = journal

    @property
    def starts(self) -> list[dict[str, Any]]:
        """Each start of a worker so far: epoch, pid, and the Start frame."""
        text = self._journal.read_text() if self._journal.exists() else ""
        return [json.loads(line) for line in text.splitlines()]

    @property
    def folder(self) -> Path:
        return self.engine._workers.folder

    def submit(
        self, prompt: str | list[int], n: int | None = 16, *, sampling: Any = None, **options: Any
    ) -> GenerationStream:
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
        return self.engine.submit(
            GenerationRequest(ids, sampling or Sampling(), max_new_tokens=n, **options)
        )

    async def generate(self, *given: Any, **options: Any) -> Collected:
        return await collect(self.submit(*given, **options))

    def expected(self, prompt: str, n: int = 16, sampling: Sampling | None = None) -> list[int]:
        """What an undisturbed worker emits for this prompt."""
        return expected_tokens(self.behaviour, self.tokenizer.encode(prompt), n, sampling)


@asynccontextmanager
async def running(
    behaviour: Behaviour,
    tmp_path: Path,
    *,
    max_rows: int = 16,
    launch: bool = True,
    tokenizer: Tokenizer | None = None,
    stop_token_ids: Sequence[int] = (),
    speculation: SpeculationConfig | None = None,
    deadline: float | None = 2 * DEADLINE,
    **options: Any,
) -> AsyncIterator[Running]:
    """An engine that serves; at the end nothing of it is left: no process, no file, no error.

    `deadline` is in seconds, for all that is done with it; None: no limit.
    """
    gc.freeze()  # what is there already need not be looked at in the end
    loop = asyncio.get_running_loop()
    loop_errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: loop_errors.append(context))
    journal = tmp_path / "journal"
    behaviour.journal = str(journal)
    path = os.pathsep.join([str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    before = {name: os.environ.get(name) for name in (VARIABLE, "PYTHONPATH")}
    os.environ |= {VARIABLE: behaviour.environment(), "PYTHONPATH": path}
    engine = Engine(
        tokenizer=tokenizer or tiny_tokenizer(),
        start=Start(
            ModelConfig(""),
            BatchConfig(max_rows),
            stop_token_ids=list(stop_token_ids),
            speculation=speculation or SpeculationConfig(),
        ),
        **{"command": COMMAND, "restarts": Restarts(backoff=Backoff(0.001, 0.01)), **options},
    )
    steps = Steps()
    found = Running(engine, behaviour, steps, journal)
    folder = found.folder
    try:
        async with asyncio.timeout(deadline):
            if launch:
                await engine.launch(lambda loading: None)
                engine.serve(steps)
            yield found
    finally:
        await engine.stop(DEADLINE)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    assert not folder.exists()
    assert [start["pid"] for start in found.starts if alive(start["pid"])] == []
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert [task for task in tasks if "tgi_async" in str(task)] == []
    await asyncio.sleep(0)
    gc.collect()
    gc.unfreeze()
    assert loop_errors == []
