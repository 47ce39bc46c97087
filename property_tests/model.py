"""A worker without a model: it executes steps on a memory of its own that remembers what it wrote.

Each slot of the KV cache holds the tokens up to and including the one whose key and value were
written there. So a row that attends to a slot of somebody else, to one that was not written yet, or
to one that was given away too early sees wrong tokens, and says so. The sampled token is a function
of the whole sequence: a request's text is the same alone, in a crowd, after a preemption and after
a worker's death, or something was lost.
"""

from __future__ import annotations

from typing import NamedTuple
from zlib import crc32

from tgi_async.wire.messages import (
    Admit,
    PromptLogprobs,
    RowError,
    Sampled,
    Step,
    StepDone,
    TopToken,
)

VOCABULARY = 6
EOS = 0

History = tuple[int, ...]
Slot = tuple[int, int]
"""Block and offset."""

BROKEN: History = (-1,)
"""What a row that failed leaves in its slots."""


class Violation(AssertionError):
    """An invariant does not hold."""

    def __init__(self, invariant: str, message: str) -> None:
        self.invariant = invariant
        super().__init__(f"{invariant}: {message}")


def require(holds: bool, invariant: str, message: str = "") -> None:
    if not holds:
        raise Violation(invariant, message)


def next_token(history: History) -> int:
    return crc32(bytes(history)) % VOCABULARY


def forced_after(history: History, most: int) -> list[int]:
    """What a grammar forces: the very tokens that would be sampled, none to four of them."""
    forced: list[int] = []
    for _ in range(min(most, crc32(bytes((*history, 99))) % 5)):
        if forced and forced[-1] == EOS:
            break
        forced.append(next_token((*history, *forced)))
    return forced


def prompt_logprob(history: History) -> float:
    """Of the last token, given those before it."""
    return -float(crc32(bytes(history)) % 1000)


def prompt_top(logprob: float) -> list[TopToken]:
    """The likeliest token where the one that is there has this log-probability."""
    return [TopToken(EOS, logprob / 2)]


def undisturbed(prompt: list[int], max_new_tokens: int, stop_ids: frozenset[int]) -> list[int]:
    """What a request emits when it runs alone."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] in stop_ids:
            break
    return tokens[len(prompt) :]


class Write(NamedTuple):
    row: int
    slot: Slot
    history: History


class Outcome(NamedTuple):
    done: StepDone
    writes: list[Write]


class _Row:
    def __init__(self, admit: Admit) -> None:
        self.tokens = list(admit.tokens)
        self.n_prompt = admit.n_prompt
        self.n_computed = admit.n_cached
        self.blocks = list(admit.blocks)
        self.prompt_logprobs = admit.prompt_logprobs
        self.prompt_top_n_tokens = admit.prompt_top_n_tokens
        self.constraint = admit.constraint
        self.broken = False

    def sample(self) -> list[int]:
        """The next token, and those that a grammar forces after it."""
        sampled = [next_token(tuple(self.tokens))]
        if self.constraint is not None and sampled != [EOS] and not self.broken:
            left = self.constraint.max_new_tokens - (len(self.tokens) - self.n_prompt) - 1
            sampled += forced_after((*self.tokens, *sampled), left)
        self.tokens += sampled
        return sampled


class ModelWorker:
    """Executes steps in order."""

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.rows: dict[int, _Row] = {}
        self.memory: dict[Slot, History] = {}

    def execute(
        self,
        step: Step,
        failing: frozenset[int] = frozenset(),
        not_ready: frozenset[int] = frozenset(),
    ) -> Outcome:
        """Rows in `failing` compute nonsense and report an error; their later steps do not.

        Rows in `not_ready` that have a grammar and are to sample do not, this time.
        """
        for released in step.release:
            require(released in self.rows, "S8", f"row {released} is released but not there")
            del self.rows[released]
        for admit in step.admit:
            require(admit.row not in self.rows, "S1", f"row {admit.row} is admitted twice")
            self.rows[admit.row] = row = _Row(admit)
            self._attend(row, admit.n_cached)
        for grow in step.grow:
            require(grow.row in self.rows, "S8", f"row {grow.row} grows but is not there")
            self.rows[grow.row].blocks += grow.blocks
        done = StepDone(step.step, [], [], [], 0.0, 0.0)
        writes: list[Write] = []
        for run in step.run:
            require(run.row in self.rows, "S8", f"row {run.row} runs but is not there")
            row = self.rows[run.row]
            start, end = row.n_computed, row.n_computed + run.n
            require(end <= len(row.tokens), "S6", f"row {run.row} has no token at {end - 1}")
            row.broken = row.broken or run.row in failing
            writes += self._write(run.row, row, end)
            if not row.broken:
                self._attend(row, end)
            samples = end == len(row.tokens)
            mask_not_ready = (
                samples and row.constraint is not None and run.row in not_ready - failing
            )
            sampled = row.sample() if samples and not mask_not_ready else []
            if run.row in failing:
                done.errors.append(RowError(run.row, "failed on purpose"))
                continue
            if row.prompt_logprobs:
                self._score(run.row, row, start, min(end, row.n_prompt - 1), done)
            if mask_not_ready:
                row.n_computed -= 1
                done.masks_not_ready.append(run.row)
            elif samples:
                done.sampled.append(Sampled(run.row, sampled))
        return Outcome(done, writes)

    def _slot(self, row: _Row, position: int) -> Slot:
        index, offset = divmod(position, self.block_size)
        require(index < len(row.blocks), "P4", f"no block for position {position}")
        return row.blocks[index], offset

    def _attend(self, row: _Row, end: int) -> None:
        for position in range(end):
            slot = self._slot(row, position)
            seen, due = self.memory.get(slot), tuple(row.tokens[: position + 1])
            require(seen == due, "P5", f"slot {slot} holds {seen}, not {due}")

    def _write(self, number: int, row: _Row, end: int) -> list[Write]:
        writes = []
        for position in range(row.n_computed, end):
            slot = self._slot(row, position)
            for other in self.rows.values():
                require(other is row or slot[0] not in other.blocks, "P3", f"slot {slot} is shared")
            history = BROKEN if row.broken else tuple(row.tokens[: position + 1])
            self.memory[slot] = history
            writes.append(Write(number, slot, history))
        row.n_computed = end
        return writes

    def _score(self, number: int, row: _Row, start: int, end: int, done: StepDone) -> None:
        if start < end:
            logprobs = [prompt_logprob(tuple(row.tokens[: p + 2])) for p in range(start, end)]
            top = [prompt_top(one) for one in logprobs] if row.prompt_top_n_tokens else []
            done.prompt_logprobs.append(PromptLogprobs(number, start + 1, logprobs, top))
