"""The scheduler's state in words, for whoever looks for what is wrong: no text and no token."""

from __future__ import annotations

from tgi_async.scheduler.core import Core
from tgi_async.scheduler.request import Request

MOST_ROWS = 64
MOST_CLIENTS = 32
"""More rows and clients than these are counted only."""


def lines_of(core: Core) -> list[str]:
    """Return what runs, what waits, which blocks are used, and what clients are charged."""
    blocks, waiting = core.blocks, list(core.waiting)
    steps = [f"{one.step} of {len(one.scheduled_rows)} rows" for one in core.in_flight]
    found = [
        f"{len(core.running)} of {core.budget.max_rows} rows run, {len(waiting)} requests wait, "
        f"{core.n_preemptions} were preempted so far",
        f"blocks of {core.budget.block_size} tokens: {blocks.n_used} used, {blocks.n_cached} "
        f"cached, {blocks.n_blocks} in all",
        f"steps in flight: {', '.join(steps) or 'none'}",
    ]
    found += [f"runs: {_described(request)}" for request in core.running[:MOST_ROWS]]
    found += [f"waits: {_described(request)}" for request in waiting[:MOST_ROWS]]
    if (n_more := len(core.running[MOST_ROWS:]) + len(waiting[MOST_ROWS:])) > 0:
        found.append(f"and {n_more} requests more")
    live = core.waiting.live_clients
    for client in sorted(live, key=lambda one: -live[one])[:MOST_CLIENTS]:
        found.append(
            f"client {client or 'without an address'}: {live[client]} requests, charged "
            f"{core.waiting.counter(client)}"
        )
    if len(live) > MOST_CLIENTS:
        found.append(f"and {len(live) - MOST_CLIENTS} clients more")
    return found


def _described(request: Request) -> str:
    return (
        f"request {request.id}, row {request.row}, prompt of {request.n_prompt} tokens "
        f"({request.n_cached} cached), {request.n_planned} computed or in flight, "
        f"{request.n_emitted} of {request.max_new_tokens} emitted, {request.n_in_flight} steps in "
        f"flight{', with a grammar' if request.grammar else ''}"
    )
