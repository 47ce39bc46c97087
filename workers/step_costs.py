"""Measure what steps cost: of made-up prompts and decodes, some sizes, and each once or twice."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from tgi_async.wire.messages import Admit, Run, Sampling, Step, StepCost, StepDone

SECONDS = 0.08
"""What the sizes may take together; once there are two and they take more, no further is tried."""
QUICK_SECONDS = 0.2
"""A chunk that takes less is timed twice, as chance shows in it."""
LEAST_CHUNK = 16
CONTEXT = 128
"""Positions before those of decodes, where there is room."""
DRAWN = Sampling(do_sample=True)
"""How decodes are sampled, as most chats are: that is a part of what a draft costs."""
DECODES = (4, 16, 32, 2, 64, 128)
MOST_DECODES = 256


@dataclass(slots=True)
class CostPlan:
    """What is to be measured, and what was found."""

    largest_chunk: int = 0
    """Prompt tokens; 0: chunks are not measured."""
    most_decodes: int = 0
    """Positions of a step of decodes; 0: they are not measured."""
    prefill: list[StepCost] = field(default_factory=list)
    """Of a chunk by its tokens, ascending; empty where it was not measured."""
    decode: list[StepCost] = field(default_factory=list)
    """Of a step of decodes by its positions, ascending; empty where it was not measured."""

    @property
    def asked(self) -> bool:
        """Whether anything is to be measured."""
        return self.largest_chunk > 0 or self.most_decodes > 0

    @property
    def n_rows(self) -> int:
        """Rows that the measured steps have."""
        return max(1, self.most_decodes)

    def measure(self, probe: StepProbe) -> None:
        """Measure it, and keep it here."""
        chunk = min(self.largest_chunk, probe.most_tokens)
        # What prompts lose in smaller chunks is a share of the rate in the largest.
        self.prefill = measured(sizes(LEAST_CHUNK, chunk, chunk), probe.chunk)
        decodes = min(self.most_decodes, probe.most_decodes)
        self.decode = measured(decode_sizes(decodes), probe.decodes) or self.decode
        probe.end()


def sizes(first: int, second: int, most: int) -> list[int]:
    """Return the sizes to try, each once: the two that matter most, and other doubles of the first
    up to `most`, itself included. There are none where these are not two."""
    doubles = []
    size = first
    while size < most:
        doubles.append(size)
        size *= 2
    return list(dict.fromkeys([first, min(second, most), *doubles, most])) if doubles else []


def decode_sizes(most: int) -> list[int]:
    """Return the numbers of decodes to try, those that matter most first; none where these are not
    two. What a further one costs changes at some of them, where tiles of rows are full."""
    if most < 2:
        return []
    return list(dict.fromkeys([1, min(8, most), *(n for n in DECODES if n < most), most]))


def measured(sizes: Sequence[int], seconds_of: Callable[[int], float | None]) -> list[StepCost]:
    """Measure sizes in order, the first two in any case, others as long as `SECONDS` last; return
    them ascending, or nothing where one failed (None)."""
    found: dict[int, float] = {}
    for n in sizes:
        if len(found) > 1 and sum(found.values()) > SECONDS:
            break
        seconds = seconds_of(n)
        if seconds is None:
            return []
        found[n] = seconds
    return [StepCost(n, found[n]) for n in sorted(found)]


class StepSizes(NamedTuple):
    """What there is room for."""

    max_rows: int
    n_blocks: int
    block_size: int
    longest: int
    """Positions of a text."""


class StepProbe:
    """Steps of made-up texts, on a runner none of whose rows are in use."""

    def __init__(
        self,
        run: Callable[[Step], StepDone],
        sizes: StepSizes,
        vocab_size: int,
        clock: Callable[[], float],
        compiles: bool = False,
    ) -> None:
        """`run` computes a step, `clock` tells the seconds that steps take. With `compiles`, the
        first step of a kind may take longer, as it makes the kernels for it."""
        self._run = run
        self._clock = clock
        self._compiles = compiles
        self._n_decoded = 3 if compiles else 2
        """Positions that each decode computes."""
        self._max_rows, self._n_blocks, self._block_size, longest = sizes
        self._vocab_size = vocab_size
        self._n_steps = 0
        self._n_rows = 0
        self._written = 0
        """Positions whose keys are in the first blocks. What nobody wrote may be no number."""
        self.most_tokens = min(self._n_blocks * self._block_size, longest)
        """Of a text."""
        context = max(0, min(CONTEXT, self.most_tokens - self._n_decoded))
        self._n_context = context // self._block_size
        """Blocks that all decodes share."""

    @property
    def most_decodes(self) -> int:
        """How many may be in a step."""
        room = (self._n_blocks - self._n_context) // self._blocks_of(self._n_decoded)
        return min(self._max_rows, room) if self.most_tokens >= self._n_decoded else 0

    def chunk(self, n: int) -> float | None:
        """Return the seconds of a step with so many tokens of a prompt, whose next token is
        sampled, or None where it fails. They come after those of the last call, as most chunks of a
        long prompt have others before them."""
        first = self._chunk(n)
        if first is None or (first >= QUICK_SECONDS and not self._compiles):
            return first
        second = self._chunk(n)
        return None if second is None else min(first, second)

    def decodes(self, n: int) -> float | None:
        """Return the seconds of a step of so many decodes, or None where it fails."""
        context, own = self._n_context * self._block_size, self._blocks_of(self._n_decoded)
        if self._written < context:
            self._written = 0
            if self._chunk(context) is None:
                return None
        shared = list(range(self._n_context))
        admit = []
        for row in range(n):
            first = self._n_context + row * own
            tokens = self._text(context) + self._text(1, row)
            blocks = shared + list(range(first, first + own))
            admit.append(Admit(row, tokens, len(tokens), context, blocks, DRAWN))
        run = [Run(row, 1) for row in range(n)]
        # Each row's first step is a prompt's, which takes no less.
        took = [self._step(admit, run)]
        took += [self._step([], run) for _ in range(self._n_decoded - 1)]
        return min((one for one in took if one is not None), default=None)

    def end(self) -> None:
        """Leave no row behind."""
        self._step([], [])

    def _chunk(self, n: int) -> float | None:
        start = self._written if self._written + n <= self.most_tokens else 0
        end = start + n
        blocks = list(range(self._blocks_of(end)))
        admit = Admit(0, self._text(end), end, start, blocks, Sampling())
        took = self._step([admit], [Run(0, n)])
        self._written = max(self._written, end)
        return took

    def _step(self, admit: list[Admit], run: list[Run]) -> float | None:
        """Run a step, in which rows that are admitted take the place of all others. Return its
        seconds, or None where a row failed."""
        release: list[int] = []
        if admit or not run:
            release, self._n_rows = list(range(self._n_rows)), len(admit)
        self._n_steps += 1
        step = Step(self._n_steps, release, admit, [], run)
        began = self._clock()
        done = self._run(step)
        took = self._clock() - began
        return None if done.errors else took

    def _text(self, n: int, first: int = 0) -> list[int]:
        """Return tokens that differ, as experts of a model are chosen by them."""
        return [(first + at) * 7919 % self._vocab_size for at in range(n)]

    def _blocks_of(self, n: int) -> int:
        return -(-n // self._block_size)
