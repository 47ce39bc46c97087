"""A mock of the model worker, for tests: it speaks the real wire and runs no model.

Started like the real one (`python -m tests.doubles.fake_worker --folder ... --epoch ... --rank ...
--router ...`). What it does is set by the environment variable FAKE_WORKER, a `Behaviour` as JSON.

Its "model" is a chain of hashes kept in the slots of the KV cache: the slot of position i holds a
hash of the slot before it and of token i, and the next token is a function of the last slot. So a
wrong block table, a prefix hit on other tokens, a lost or doubled token or a wrong replay gives
another text.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from zlib import crc32

import msgspec

from tgi_async.wire.channel import WorkerChannel
from tgi_async.wire.messages import (
    Admit,
    CachePool,
    Loading,
    PromptLogprobs,
    Ready,
    Refused,
    RowError,
    Run,
    Sampled,
    Sampling,
    Start,
    Step,
    StepCost,
    StepDone,
    Stop,
    TopToken,
)
from workers.parent_death import die_with_parent

VARIABLE = "FAKE_WORKER"
COMMAND = (sys.executable, "-m", "tests.doubles.fake_worker")
EOS = 257
"""The last token of `tests.api.tiny_tokenizer`."""
VOCABULARY = 258


class Behaviour(msgspec.Struct, kw_only=True):
    """What a fake worker does. Steps are counted from 1 in each epoch; so are epochs.

    The keys of `die_at` and of its like are epochs, or 0 for all of them.
    """

    n_blocks: int = 64
    block_size: int = 4
    max_total_tokens: int = 256
    max_batch_prefill_tokens: int = 32
    prefill_costs: dict[int, float] = {}
    """Seconds by tokens."""
    vocab_size: int = VOCABULARY
    tokens: tuple[int, ...] = tuple(range(65, 91))
    """The model chooses among these, by hash."""
    script: list[int] = []
    """The first tokens that every request gets."""
    parrot: bool = False
    """Every request gets its own prompt again, and then the end."""
    eos_after: int | None = None
    """Tokens after which the model ends."""
    row_error_on: int | None = None
    """A row with this token fails, alone."""
    die_on: int | None = None
    """Who computes a row with this token dies."""
    die_after: int = 0
    """Tokens that such a row gets before."""
    die_on_length: int = 0
    """Tokens that such a row has at least, its prompt's included; 0: whatever it has."""
    hang_on: bool = False
    """Where it would die of a token, it hangs."""
    die_at: dict[int, int] = {}
    """Steps before whose result it dies."""
    exit_status: int | None = None
    """How it dies; by SIGKILL, if None."""
    die_loading: list[int] = []
    """Epochs whose worker dies before it is ready."""
    refuse: dict[int, str] = {}
    """Why it refuses the model."""
    garbage_at: dict[int, int] = {}
    """Steps whose result is bytes outside the wire."""
    other_step_at: dict[int, int] = {}
    """Steps whose result names another step."""
    early_result: bool = False
    """Send a result before being ready."""
    n_heads: int = 4
    """Drafts of its heads, where it is given a folder of these."""
    blocks_later: int | None = None
    """Blocks of workers after the first one, whatever is asked for."""
    deaf_at: dict[int, int] = {}
    """Steps after which it reads no more, without dying."""
    takes_images: bool = False
    device: str = "fake"
    load_seconds: float = 0.0
    step_seconds: float = 0.0
    journal: str = ""
    """A file to which it appends a line of JSON for each start."""

    def environment(self) -> str:
        return msgspec.json.encode(self).decode()


class _Row:
    def __init__(self, admit: Admit) -> None:
        self.tokens = list(admit.tokens)
        self.n_prompt = admit.n_prompt
        self.n_computed = admit.n_cached
        self.n_sampled = 0
        self.blocks = list(admit.blocks)
        self.sampling = admit.sampling
        self.prompt_logprobs = admit.prompt_logprobs
        self.prompt_top_n = admit.prompt_top_n_tokens


class FakeWorker:
    """The loop of a worker, and the mischief."""

    def __init__(self, channel: WorkerChannel, behaviour: Behaviour, epoch: int) -> None:
        self._channel = channel
        self._behaviour = behaviour
        self._epoch = epoch
        self._rows: dict[int, _Row] = {}
        self._slots: dict[int, int] = {}
        self._block_size = behaviour.block_size

    def run(self) -> None:
        behaviour = self._behaviour
        start = self._channel.receive()
        assert isinstance(start, Start)
        self._note(start)
        if behaviour.early_result:
            self._channel.send(StepDone(1, [], [], [], 0.0, 0.0))
        if reason := self._now(behaviour.refuse):
            self._channel.send(Refused(str(reason)))
            return
        self._channel.send(Loading("loading weights", 0.0, "none"))
        time.sleep(behaviour.load_seconds)
        if self._epoch in behaviour.die_loading:
            self._die()
        self._channel.send(Loading("loading weights", 0.01, "none"))
        (n_blocks,) = start.cache.n_blocks or [behaviour.n_blocks]
        if self._epoch > 1 and behaviour.blocks_later is not None:
            n_blocks = behaviour.blocks_later
        self._n_blocks = n_blocks
        asked = start.speculation
        self._max_drafts = asked.max_drafts or (behaviour.n_heads if asked.path else 0)
        method = asked.method or ("medusa" if asked.path else "suffix")
        self._channel.send(
            Ready(
                pools=[CachePool(n_blocks)],
                block_size=self._block_size,
                max_total_tokens=behaviour.max_total_tokens,
                max_batch_prefill_tokens=(
                    start.batch.max_prefill_tokens or behaviour.max_batch_prefill_tokens
                ),
                device=behaviour.device,
                eos_token_ids=[EOS],
                vocab_size=behaviour.vocab_size,
                kv_cache_bytes=0,
                weight_bytes=0,
                notes=["this is a fake worker"],
                kv_cache_dtype=start.model.kv_cache_dtype or "bfloat16",
                prefill_costs=[StepCost(*one) for one in behaviour.prefill_costs.items()],
                target_inter_token_latency=start.target_inter_token_latency or 0.1,
                max_drafts=self._max_drafts,
                speculation=method if self._max_drafts else "",
                takes_images=behaviour.takes_images,
            )
        )
        n_steps = 0
        while True:
            message = self._channel.receive()
            if isinstance(message, Stop):
                return
            assert isinstance(message, Step)
            n_steps += 1
            self._step(message, n_steps)

    def _step(self, step: Step, n_steps: int) -> None:
        behaviour = self._behaviour
        time.sleep(behaviour.step_seconds)
        for number in step.release:
            del self._rows[number]
        for admit in step.admit:
            assert admit.row not in self._rows
            self._rows[admit.row] = _Row(admit)
        for grow in step.grow:
            self._rows[grow.row].blocks += grow.blocks
        sampled: list[Sampled] = []
        prompt_logprobs: list[PromptLogprobs] = []
        errors: list[RowError] = []
        for run in step.run:
            row = self._rows[run.row]
            if behaviour.die_on in row.tokens and self._kills(row):
                self._die()
            if behaviour.row_error_on in row.tokens:
                errors.append(RowError(run.row, "this row is not to the model's taste"))
                continue
            n_known = len(row.tokens) - row.n_computed
            prompt_logprobs += self._compute(row, run)
            if row.n_computed == len(row.tokens):
                sampled.append(self._sample(row, run.row, max(0, run.n - n_known)))
                row.n_sampled += 1
        if n_steps == self._now(behaviour.die_at):
            self._die()
        if n_steps == self._now(behaviour.garbage_at):
            self._channel._replies.send(b"\x01 this is no frame")
            return
        if n_steps == self._now(behaviour.deaf_at):
            time.sleep(3600)
        answered = step.step + 100 if n_steps == self._now(behaviour.other_step_at) else step.step
        self._channel.send(StepDone(answered, sampled, prompt_logprobs, errors, 0.001, 0.0005))

    def _kills(self, row: _Row) -> bool:
        """Whether a row with `die_on` is deadly now."""
        if least := self._behaviour.die_on_length:
            return len(row.tokens) >= least
        return row.n_sampled == self._behaviour.die_after

    def _compute(self, row: _Row, run: Run) -> list[PromptLogprobs]:
        """Fill the slots of the row's next `n` positions."""
        start, end = row.n_computed, min(row.n_computed + run.n, len(row.tokens))
        last = start + run.n
        assert last - end <= self._max_drafts, "more tokens are asked for than are known"
        assert last <= len(row.blocks) * self._block_size, "the block table is too short"
        assert max(row.blocks) < self._n_blocks, "there is no such block"
        for position in range(end, last):
            self._slots[self._slot(row, position)] = 0  # a draft that may be wrong
        for position in range(start, end):
            before = self._slots[self._slot(row, position - 1)] if position else 0
            self._slots[self._slot(row, position)] = _chain(before, row.tokens[position])
        row.n_computed = end
        last = min(end, row.n_prompt - 1)
        if not row.prompt_logprobs or start >= last:
            return []
        states = [self._slots[self._slot(row, position)] for position in range(start, last)]
        following = row.tokens[start + 1 : last + 1]
        logprobs = [_prompt_logprob(*pair) for pair in zip(states, following, strict=True)]
        top = [_prompt_top(state, row.prompt_top_n) for state in states] if row.prompt_top_n else []
        ranks = [1 + state % 9 for state in states]
        return [PromptLogprobs(run.row, start + 1, logprobs, top, ranks)]

    def _sample(self, row: _Row, number: int, n_drafts: int) -> Sampled:
        """The next token, behind none to all of the drafts."""
        state = self._slots[self._slot(row, row.n_computed - 1)]
        tokens = [self._next(row, state)]
        for _ in range(state % (n_drafts + 1)):
            if tokens[-1] == EOS:
                break
            state = _chain(state, tokens[-1])
            self._slots[self._slot(row, row.n_computed)] = state
            row.n_computed += 1
            tokens.append(self._next(row, state))
        top = [TopToken(65 + i, -0.5 * i) for i in range(row.sampling.top_n_tokens)]
        n = len(tokens)
        logprobs = [-0.5] * n if row.sampling.logprobs else []
        tops = [top] * n if top else []
        return Sampled(number, tokens, logprobs, tops, n_computed=n - 1, n_drafts=n_drafts)

    def _next(self, row: _Row, state: int) -> int:
        """Sample a token and append it."""
        n_emitted = len(row.tokens) - row.n_prompt
        token = next_token(self._behaviour, state, n_emitted, row.sampling)
        if self._behaviour.parrot:
            token = row.tokens[n_emitted] if n_emitted < row.n_prompt else EOS
        row.tokens.append(token)
        return token

    def _slot(self, row: _Row, position: int) -> int:
        block = row.blocks[position // self._block_size]
        return block * self._block_size + position % self._block_size

    def _now(self, table: dict[int, int] | dict[int, str]) -> int | str | None:
        return table.get(self._epoch, table.get(0))

    def _note(self, start: Start) -> None:
        if self._behaviour.journal:
            line = {"epoch": self._epoch, "pid": os.getpid(), "start": start}
            with open(self._behaviour.journal, "ab") as file:
                file.write(msgspec.json.encode(line) + b"\n")

    def _die(self) -> None:
        if self._behaviour.hang_on:
            time.sleep(3600)
        if self._behaviour.exit_status is not None:
            os._exit(self._behaviour.exit_status)
        os.kill(os.getpid(), signal.SIGKILL)


def next_token(behaviour: Behaviour, state: int, n_emitted: int, sampling: Sampling) -> int:
    """What the fake model emits after `n_emitted` tokens and at this state."""
    if n_emitted == behaviour.eos_after:
        return EOS
    if n_emitted < len(behaviour.script):
        return behaviour.script[n_emitted]
    if sampling.do_sample:
        state = crc32(f"{state} {sampling.seed} {sampling.choice}".encode())
    return behaviour.tokens[state % len(behaviour.tokens)]


def expected_tokens(
    behaviour: Behaviour, prompt: list[int], n: int, sampling: Sampling | None = None
) -> list[int]:
    """What an undisturbed fake worker emits."""
    state = 0
    for token in prompt:
        state = _chain(state, token)
    found: list[int] = []
    for n_emitted in range(n):
        found.append(next_token(behaviour, state, n_emitted, sampling or Sampling()))
        state = _chain(state, found[-1])
    return found


def expected_prompt_logprobs(prompt: list[int]) -> list[float | None]:
    """What an undisturbed fake worker scores a prompt with."""
    return [None, *(_prompt_logprob(*pair) for pair in _states(prompt))]


def expected_prompt_top(prompt: list[int], n: int) -> list[list[TopToken]]:
    """The `n` likeliest tokens at each place of a prompt, to an undisturbed fake worker."""
    return [[], *(_prompt_top(state, n) for state, _ in _states(prompt))]


def _prompt_top(state: int, n: int) -> list[TopToken]:
    return [TopToken(65 + i, -float(state % 1000 + i)) for i in range(n)]


def _states(prompt: list[int]) -> list[tuple[int, int]]:
    """The state before each token of a prompt but the first, and that token."""
    state = 0
    found: list[tuple[int, int]] = []
    for token, following in pairwise(prompt):
        state = _chain(state, token)
        found.append((state, following))
    return found


def _chain(state: int, token: int) -> int:
    return crc32(token.to_bytes(4, "little"), state)


def _prompt_logprob(state: int, following: int) -> float:
    return -((state + following) % 1000) / 8


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--epoch", type=int, required=True)
    parser.add_argument("--rank", type=int, required=True)
    parser.add_argument("--router", type=int, required=True)
    given = parser.parse_args(words)
    die_with_parent(given.router)
    faulthandler.register(signal.SIGUSR1)
    behaviour = msgspec.json.decode(os.environ.get(VARIABLE, "{}"), type=Behaviour)
    channel = WorkerChannel(given.folder, given.epoch, given.rank)
    try:
        FakeWorker(channel, behaviour, given.epoch).run()
    finally:
        channel.close()


if __name__ == "__main__":
    main()
