"""What preemption costs in a pool that is always full: by the scheduler's core alone.

    python -m benchmarks.preemption

There is no worker and no clock: rows emit tokens that were never computed, so that the same counts
come out on any machine. Clients ask again as soon as they are answered. Texts end before their
limit, as in practice; `end` is the mean share of it that they reach.
"""

from __future__ import annotations

import argparse
from random import Random
from typing import NamedTuple

from tgi_async.scheduler.core import Core
from tgi_async.scheduler.plan import Budget
from tgi_async.scheduler.request import Request, TokenEvent
from tgi_async.wire.messages import CachePool, Sampled, StepDone

CLIENTS = ("ann", "bob", "eve", "joe")
EOS = 1


class Load(NamedTuple):
    """What is asked of a pool."""

    n_blocks: int
    n_prompt: tuple[int, int]
    """Fewest and most tokens."""
    max_new_tokens: tuple[int, int]
    end: float
    n_clients: int = 64


LOADS = {
    "to the limit": Load(256, (16, 128), (64, 256), 1.0),
    "half of the limit": Load(256, (16, 128), (128, 512), 0.5),
    "a tenth of the limit": Load(256, (16, 128), (512, 2048), 0.1),
    "long prompts": Load(512, (256, 1024), (64, 256), 0.7),
}


class Counts(NamedTuple):
    n_steps: int
    n_emitted: int
    n_ended: int
    n_preemptions: int
    n_recomputed: int
    """Tokens that were computed again, those found in the prefix cache not among them."""

    @property
    def emitted_a_step(self) -> float:
        return self.n_emitted / self.n_steps

    @property
    def preemptions_an_end(self) -> float:
        return self.n_preemptions / self.n_ended

    @property
    def recomputed_a_token(self) -> float:
        return self.n_recomputed / self.n_emitted


def measure(load: Load, n_steps: int = 3000, seed: int = 1, core_type: type[Core] = Core) -> Counts:
    """Drive a core for so many steps."""
    random = Random(seed)
    core = core_type(
        Budget(
            pools=[CachePool(load.n_blocks)],
            block_size=16,
            max_rows=64,
            max_batch_prefill_tokens=512,
            max_total_tokens=load.n_blocks * 16,
        )
    )
    ends: dict[int, int] = {}
    begun: set[int] = set()
    last_id = n_emitted = n_ended = n_recomputed = 0

    def ask(client: str) -> None:
        nonlocal last_id
        last_id += 1
        prompt = [random.randrange(2, 1 << 20) for _ in range(random.randint(*load.n_prompt))]
        most = random.randint(*load.max_new_tokens)
        ends[last_id] = min(most, max(1, round(most * load.end * random.uniform(0.5, 1.5))))
        core.submit(Request(last_id, prompt, most, client=client, stop_ids=frozenset((EOS,))))

    for number in range(load.n_clients):
        ask(CLIENTS[number % len(CLIENTS)])
    for _ in range(n_steps):
        while (plan := core.plan()) is not None:
            for admit, request in zip(plan.step.admit, plan.admitted, strict=True):
                if request.id in begun:
                    n_recomputed += len(admit.tokens) - admit.n_cached
                begun.add(request.id)
        flight = core._in_flight[0]
        sampled = []
        for row in flight.scheduled_rows:
            if row.samples:
                last = row.request.n_emitted + 1 >= ends.get(row.request.id, 0)
                sampled.append(Sampled(row.row, [EOS if last else random.randrange(2, 1 << 20)]))
        done = StepDone(flight.step, sampled, [], [], 0.0, 0.0)
        for event in core.complete(done):
            assert isinstance(event, TokenEvent)
            n_emitted += 1
            if event.finish_reason is not None:
                n_ended += 1
                del ends[event.request.id]
                ask(event.request.client)
    return Counts(n_steps, n_emitted, n_ended, core.n_preemptions, n_recomputed)


def main() -> None:
    parser = argparse.ArgumentParser(description="What preemption costs, by the core alone.")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    for name, load in LOADS.items():
        counts = measure(load, given.steps, given.seed)
        print(
            f"{name}: {counts.emitted_a_step:.1f} tokens a step, "
            f"{counts.preemptions_an_end:.3f} preemptions a request, "
            f"{counts.recomputed_a_token:.3f} tokens recomputed a token",
            flush=True,
        )


if __name__ == "__main__":
    main()
