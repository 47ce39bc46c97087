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


def drafted(history: History, step: int, most: int) -> int:
    """How many drafts a worker has for a row that may have `most`: more often all than fewer."""
    return most - crc32(bytes((*history, 101 + step % 100))) % 2 * crc32(bytes(history)) % (
        most + 1
    )


def accepted(history: History, step: int, n_drafts: int) -> int:
    """How many drafts are what would be sampled: none to all, another number in another step."""
    return crc32(bytes((*history, 100 + step % 100))) % (n_drafts + 1)


def prompt_logprob(history: History) -> float:
    """Of the last token, given those before it."""
    return -float(crc32(bytes(history)) % 1000)


def prompt_top(logprob: float) -> list[TopToken]:
    """The likeliest token where the one that is there has this log-probability."""
    return [TopToken(EOS, logprob / 2)]


def has_stop_sequence(emitted: list[int]) -> bool:
    """Whether a text ends here by a stop sequence: two tokens that make seven together."""
    return sum(emitted[-2:]) == 7 and len(emitted) > 1


def undisturbed(
    prompt: list[int], max_new_tokens: int, stop_ids: frozenset[int], *, stops: bool = False
) -> list[int]:
    """What a request emits when it runs alone. `stops`: until a stop sequence."""
    tokens = list(prompt)
    for _ in range(max_new_tokens):
        tokens.append(next_token(tuple(tokens)))
        if tokens[-1] in stop_ids or (stops and has_stop_sequence(tokens[len(prompt) :])):
            break
    return tokens[len(prompt) :]


class Write(NamedTuple):
    row: int
    slot: Slot
    history: History


class Outcome(NamedTuple):
    done: StepDone
    writes: list[Write]
    n_computed: dict[int, int]
    """Of each row, positions that count as computed."""


class _Row:
    def __init__(self, admit: Admit) -> None:
        self.tokens = list(admit.tokens)
        self.n_prompt = admit.n_prompt
        self.n_computed = admit.n_cached
        self.blocks = list(admit.blocks)
        self.prompt_logprobs = admit.prompt_logprobs
        self.prompt_top_n_tokens = admit.prompt_top_n_tokens
        self.constraint = admit.constraint
        self.spans = admit.spans
        self.broken = False

    def within_a_span(self, end: int) -> bool:
        """Whether its positions before `end` are a part of a span only."""
        return any(span.start < end < span.end for span in self.spans)

    def drafts(self, step: int, n: int) -> list[int]:
        """As many drafts, of which the first are right, and the next is not."""
        found: list[int] = []
        n_right = accepted(tuple(self.tokens), step, n)
        for number in range(n):
            right = next_token((*self.tokens, *found))
            found.append(right if number < n_right else (right + 1) % VOCABULARY)
        return found

    def sample(self, drafts: list[int]) -> tuple[list[int], int]:
        """The accepted drafts, the next token, and those that a grammar forces after it. Also how
        many were accepted."""
        sampled = [next_token(tuple(self.tokens))]
        for draft in drafts:
            if draft != sampled[-1] or (self.constraint is not None and draft == EOS):
                break
            sampled.append(next_token((*self.tokens, *sampled)))
        n_accepted = len(sampled) - 1
        if self.constraint is not None and sampled[-1] != EOS and not self.broken:
            n_emitted = len(self.tokens) + len(sampled) - self.n_prompt
            left = self.constraint.max_new_tokens - n_emitted
            sampled += forced_after((*self.tokens, *sampled), left)
        self.tokens += sampled
        self.n_computed += n_accepted
        return sampled, n_accepted


class ModelWorker:
    """Executes steps in order."""

    def __init__(self, block_size: int, max_drafts: int = 0) -> None:
        self.block_size = block_size
        self.max_drafts = max_drafts
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
            require(not row.within_a_span(admit.n_cached), "S10", "a hit ends within a span")
        for grow in step.grow:
            require(grow.row in self.rows, "S8", f"row {grow.row} grows but is not there")
            self.rows[grow.row].blocks += grow.blocks
        done = StepDone(step.step, [], [], [], 0.0, 0.0)
        outcome = Outcome(done, [], {})
        for run in step.run:
            require(run.row in self.rows, "S8", f"row {run.row} runs but is not there")
            row = self.rows[run.row]
            start, end = row.n_computed, min(row.n_computed + run.n, len(row.tokens))
            n_drafts = run.n - (end - start)
            require(end > start, "S6", f"row {run.row} has no token at {start}")
            require(n_drafts <= self.max_drafts, "S6", f"row {run.row} has no token at {end}")
            require(not row.within_a_span(end), "S10", f"a chunk of row {run.row} ends in a span")
            row.broken = row.broken or run.row in failing
            drafts = row.drafts(step.step, drafted(tuple(row.tokens), step.step, n_drafts))
            outcome.writes.extend(self._write(run.row, row, end, drafts))
            if not row.broken:
                self._attend(row, end)
            samples = end == len(row.tokens)
            mask_not_ready = (
                samples and row.constraint is not None and run.row in not_ready - failing
            )
            sampled, n_accepted = row.sample(drafts) if samples and not mask_not_ready else ([], 0)
            row.n_computed -= mask_not_ready
            outcome.n_computed[run.row] = row.n_computed - start
            if run.row in failing:
                done.errors.append(RowError(run.row, "failed on purpose"))
                continue
            if row.prompt_logprobs:
                self._score(run.row, row, start, min(end, row.n_prompt - 1), done)
            if mask_not_ready:
                done.masks_not_ready.append(run.row)
            elif samples:
                found = Sampled(run.row, sampled, n_computed=n_accepted, n_drafts=len(drafts))
                done.sampled.append(found)
        return outcome

    def _slot(self, row: _Row, position: int) -> Slot:
        index, offset = divmod(position, self.block_size)
        require(index < len(row.blocks), "P4", f"no block for position {position}")
        return row.blocks[index], offset

    def _attend(self, row: _Row, end: int) -> None:
        for position in range(end):
            slot = self._slot(row, position)
            seen, due = self.memory.get(slot), tuple(row.tokens[: position + 1])
            require(seen == due, "P5", f"slot {slot} holds {seen}, not {due}")

    def _write(self, number: int, row: _Row, end: int, drafts: list[int]) -> list[Write]:
        writes = []
        tokens = row.tokens[:end] + drafts
        for position in range(row.n_computed, len(tokens)):
            slot = self._slot(row, position)
            for other in self.rows.values():
                require(other is row or slot[0] not in other.blocks, "P3", f"slot {slot} is shared")
            history = BROKEN if row.broken else tuple(tokens[: position + 1])
            self.memory[slot] = history
            writes.append(Write(number, slot, history))
        row.n_computed = end
        return writes

    def _score(self, number: int, row: _Row, start: int, end: int, done: StepDone) -> None:
        if start < end:
            logprobs = [prompt_logprob(tuple(row.tokens[: p + 2])) for p in range(start, end)]
            top = [prompt_top(one) for one in logprobs] if row.prompt_top_n_tokens else []
            done.prompt_logprobs.append(PromptLogprobs(number, start + 1, logprobs, top))
