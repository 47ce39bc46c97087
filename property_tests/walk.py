"""Random walks through a checked core: the same seed takes the same way on any machine."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

from property_tests.checked import CheckedCore
from property_tests.model import EOS, VOCABULARY
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.reservations import Capacity
from tgi_async.wire.messages import CachePool, Span

CLIENTS = ("ann", "bob", "eve")
PLACES: tuple[tuple[tuple[int, int], ...], ...] = (
    (),
    (),
    (),
    ((2, 4), (4, 9)),
    ((0, 6),),
    ((5, 12),),
)
"""Where prompts have spans."""


def random_budget(random: Random) -> Budget:
    """A pool of blocks that is soon full."""
    block_size = random.randint(1, 4)
    n_blocks = random.randint(3, 12)
    return Budget(
        pools=[CachePool(n_blocks)],
        block_size=block_size,
        max_rows=random.randint(1, 5),
        max_batch_prefill_tokens=random.randint(1, 9),
        max_total_tokens=random.randint(4, n_blocks * block_size + 2),
        overcommit=random.choice((1.0, 1.5, 4.0)),
        lookahead=random.randint(0, 1),
        capacity=random_capacity(random),
    )


def random_capacity(random: Random) -> Capacity:
    """A queue that is soon full, or one that never is."""
    if random.random() < 0.5:
        return Capacity()
    return Capacity(
        max_concurrent=random.randint(1, 5),
        max_queued=random.choice((0, 1, 4, 8, 8)),
        max_queued_bytes=random.choice((30, 60, 2**62)),
    )


def walk(
    seed: int,
    n_events: int,
    core_type: type[Core] = Core,
    max_drafts: int = 0,
    *,
    lookahead: int | None = None,
    deaths: float | None = None,
) -> Counter[str]:
    """Returns what was reached. Raises `Violation` where an invariant breaks.

    The seed chooses what is None; `deaths` is the rate of the worker's.
    """
    random = Random(seed)
    max_logits = (1, 3, 6, 512)[seed % 4]
    budget = random_budget(random)._replace(max_drafts=max_drafts, max_logits=max_logits)
    if lookahead is not None:
        budget = budget._replace(lookahead=lookahead)
    if budget.capacity.max_queued and seed >= 1000:
        tokens = (None, None, 8, 16)[seed // 2 % 4]
        budget = budget._replace(capacity=budget.capacity._replace(max_queued_tokens=tokens))
    checked = CheckedCore(budget, core_type)
    stems = [[random.randrange(VOCABULARY) for _ in range(16)] for _ in range(2)]
    submits = random.choice((0.03, 0.1, 0.3))
    crowds = 0.01 if checked.budget.capacity.max_queued else 0.0
    some = random.choice((0.0, 0.002, 0.02))
    deaths = some if deaths is None else deaths
    failures = random.choice((0.0, 0.0, 0.05))
    not_ready_rate = random.choice((0.0, 0.1, 0.6))
    for _ in range(n_events):
        dice = random.random()
        if dice < submits:
            _submit(checked, random, stems)
        elif dice < submits + crowds:
            _fill(checked, random, stems)
        elif checked.booked and random.random() < 0.04:
            _submit_booked(checked, random, stems)
        elif dice < submits + crowds + 0.03 and checked.live:
            checked.finish(random.choice(list(checked.live.values())))
        elif dice < submits + crowds + 0.03 + deaths:
            checked.die()
        elif random.random() < 0.5:
            checked.plan()
        else:
            fails = random.random() < failures
            row = random.randrange(checked.budget.max_rows)
            rows = range(checked.budget.max_rows)
            not_ready = frozenset(row for row in rows if random.random() < not_ready_rate)
            checked.complete(frozenset((row,)) if fails else frozenset(), not_ready)
    checked.drain()
    return checked.reached


def _submit(
    checked: CheckedCore, random: Random, stems: list[list[int]], client: str | None = None
) -> None:
    client = client or random.choice(CLIENTS)
    n_rows = 1 if random.random() < 0.8 else random.randint(2, 3)
    if random.random() < 0.2:
        checked.book(client, n_rows, random.randint(1, 12))
        return
    prompt, n, options = _request(checked, random, stems)
    checked.submit(client, prompt, n, n_rows, **options)


def _fill(checked: CheckedCore, random: Random, stems: list[list[int]]) -> None:
    """One client takes what there is, and then others come."""
    for _ in range(checked.budget.capacity.max_rows):
        _submit(checked, random, stems, "eve")
    for _ in range(3):
        _submit(checked, random, stems)


def _submit_booked(checked: CheckedCore, random: Random, stems: list[list[int]]) -> None:
    booking = random.choice(checked.booked)
    if random.random() < 0.3:
        checked.give_up(booking)
        return
    prompt, n, options = _request(checked, random, stems)
    checked.submit_booked(booking, prompt, n, **options)


def _request(
    checked: CheckedCore, random: Random, stems: list[list[int]]
) -> tuple[list[int], int, dict[str, Any]]:
    """Prompt, new tokens and the rest."""
    most = checked.budget.max_total_tokens
    stem = random.choice(stems)[: random.choice((0, 4, 8, 12, 16))]
    tail = [random.randrange(VOCABULARY) for _ in range(random.randint(0, 3))]
    prompt = stem + tail
    n = random.randint(1, 8)
    if random.random() < 0.95:
        prompt = prompt[: random.randint(1, most - 1)] or [EOS]
        n = random.randint(1, most - len(prompt))
    prompt_logprobs = random.random() < 0.1
    options = {
        "stop_ids": frozenset((EOS,)) if random.random() < 0.3 else frozenset(),
        "prompt_logprobs": prompt_logprobs,
        "prompt_top_n_tokens": n % 2 if prompt_logprobs else 0,
        "grammar": "any" if random.random() < 0.3 else "",
        "stops": sum(prompt) % 3 == 0,
        "spans": spans_of(prompt, *PLACES[sum(prompt) % len(PLACES)]),
    }
    return prompt, n, options


def spans_of(prompt: list[int], *places: tuple[int, int] | None) -> tuple[Span, ...]:
    """The spans of a prompt at such of these places as it has."""
    return tuple(Span(*place) for place in places if place and place[1] <= len(prompt))
