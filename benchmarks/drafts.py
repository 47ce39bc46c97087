"""What sources of drafts cost, and how often they are right, without a model.

A known answer is given to a source as if a model wrote it: in a step the row gets as many of the
drafts as the answer has too, and the token after them.
"""

from __future__ import annotations

import argparse
import random
import tracemalloc
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter

from tokenizers import Tokenizer

from benchmarks.draft_texts import continued, works
from workers.models.embedded import prepare_embedded
from workers.speculation.ngram import NgramSource
from workers.speculation.source import DraftRows, DraftSource
from workers.speculation.suffix import SuffixSource

SOURCES: dict[str, Callable[[], DraftSource]] = {"ngram": NgramSource, "suffix": SuffixSource}
BANDS = (1, 2, 3, 4, 8, 16)
"""Lengths of matches that are counted together, by the least of them."""
VOCABULARY = 49_152

Exchange = tuple[list[int], list[int]]
"""The tokens of a prompt and of its answer."""


@dataclass(slots=True)
class Drafted:
    """What came of the drafts for some answers. Times are in seconds, one a step."""

    n_tokens: int = 0
    n_drafts: int = 0
    n_right: int = 0
    proposing: list[float] = field(default_factory=list)
    observing: list[float] = field(default_factory=list)
    by_match: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))
    """By the match, of each step that had drafts: how many, and how many were right."""

    @property
    def n_steps(self) -> int:
        return len(self.proposing)


def draft(source: DraftSource, exchanges: Iterable[Exchange], limit: int) -> Drafted:
    """Give a source the answers, one row after another, with at most `limit` drafts a step."""
    result = Drafted()
    for prompt, answer in exchanges:
        source.admit(0, prompt, len(prompt), "tenant")
        source.observe(0, answer[:1])
        n_given = 1
        while n_given < len(answer):
            wanted = DraftRows([0], [limit])
            began = perf_counter()
            (proposal,) = source.propose(wanted)
            result.proposing.append(perf_counter() - began)
            n_right = 0
            for guessed, token in zip(proposal.tokens, answer[n_given:], strict=False):
                if guessed != token:
                    break
                n_right += 1
            given = answer[n_given : n_given + n_right + 1]
            began = perf_counter()
            source.observe(0, given)
            result.observing.append(perf_counter() - began)
            n_given += len(given)
            result.n_tokens += len(given)
            if proposal.tokens:
                result.n_drafts += len(proposal.tokens)
                result.n_right += n_right
                result.by_match[proposal.match].append((len(proposal.tokens), n_right))
        source.release(0)
    return result


def print_works(
    named: dict[str, list[Exchange]], hostile: dict[str, list[Exchange]], limit: int
) -> None:
    """Print what each source does with each work, and how right it is by its matches; with hostile
    texts, what it costs only."""
    print(f"at most {limit} drafts a step      tokens  drafts   right     propose, us      observe")
    print("source  work             a step  a step    of all  median     p99      max  median, us")
    matches: dict[str, dict[int, list[tuple[int, int]]]] = {}
    for name, make in SOURCES.items():
        matches[name] = defaultdict(list)
        for work, exchanges in (named | hostile).items():
            done = draft(make(), exchanges, limit)
            times = sorted(1e6 * seconds for seconds in done.proposing)
            print(
                f"{name:7} {work:15} {done.n_tokens / done.n_steps:7.2f} "
                f"{done.n_drafts / done.n_steps:7.2f} {done.n_right / max(1, done.n_drafts):8.0%} "
                f"{median(times):7.1f} {times[int(0.99 * (len(times) - 1))]:7.1f} {times[-1]:8.1f} "
                f"{1e6 * median(done.observing):11.2f}",
                flush=True,
            )
            for match, steps in done.by_match.items() if work in named else ():
                matches[name][max(band for band in BANDS if band <= match)] += steps
    for name, by_band in matches.items():
        print(f"\n{name}: match    steps   first right   right of the drafts")
        for band in sorted(by_band):
            steps = by_band[band]
            first = sum(right > 0 for _, right in steps) / len(steps)
            share = sum(right for _, right in steps) / sum(n for n, _ in steps)
            print(f"{band:{len(name) + 5}}+ {len(steps):10} {first:13.0%} {share:13.0%}")


def print_lengths(lengths: Iterable[int]) -> None:
    """Print what a prompt of so many tokens costs until its first drafts, and its memory."""
    print("\ntokens     admit, ms   first propose, ms   bytes a token")
    for length in lengths:
        draw = random.Random(length)
        tokens = [draw.randrange(VOCABULARY) for _ in range(length)]
        times = []
        for _ in range(5):
            source, began = SuffixSource(), perf_counter()
            source.admit(0, tokens, length, "tenant")
            admitted = perf_counter()
            source.propose(DraftRows([0], [8]))
            times.append((admitted - began, perf_counter() - admitted))
        tracemalloc.start()
        source = SuffixSource()
        source.admit(0, tokens, length, "tenant")
        source.propose(DraftRows([0], [8]))
        n_bytes, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        admitting, proposing = (1e3 * min(column) for column in zip(*times, strict=True))
        print(f"{length:7} {admitting:12.2f} {proposing:19.2f} {n_bytes / length:15.1f}")


def hostile_texts(n_tokens: int) -> dict[str, list[Exchange]]:
    """Return texts in which places are hard to tell apart, or never repeat."""
    draw = random.Random(2)

    def exchange(tokens: list[int]) -> list[Exchange]:
        cut = len(tokens) - len(tokens) // 4
        return [(tokens[:cut], tokens[cut:])] * 2

    return {
        "one token": exchange([7] * n_tokens),
        "two tokens": exchange([7, 8] * (n_tokens // 2)),
        "either of two": exchange([draw.randrange(2) for _ in range(n_tokens)]),
        "one of four": exchange([draw.randrange(4) for _ in range(n_tokens)]),
        "random": exchange([draw.randrange(VOCABULARY) for _ in range(n_tokens)]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="What sources of drafts cost, and find.")
    parser.add_argument("--limit", type=int, default=8, help="most drafts a step")
    parser.add_argument(
        "--lengths", type=int, nargs="*", default=[1000, 10_000, 100_000, 128_000], help="prompts"
    )
    parser.add_argument(
        "--files", type=Path, nargs="*", help="texts to continue after a third, instead of ours"
    )
    given = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(prepare_embedded() / "tokenizer.json"))
    texts = works()
    if given.files:
        texts = {path.name: [continued(path.read_text())] for path in given.files}
    print_works(
        {
            work: [
                (
                    tokenizer.encode(prompt, add_special_tokens=False).ids,
                    tokenizer.encode(answer, add_special_tokens=False).ids,
                )
                for prompt, answer in exchanges
            ]
            for work, exchanges in texts.items()
        },
        hostile_texts(16_000),
        given.limit,
    )
    print_lengths(given.lengths)


if __name__ == "__main__":
    main()
