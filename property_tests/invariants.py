"""What must hold of a core's state at any time, whatever happened before."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping

from property_tests.model import History, Slot, require
from tgi_async.scheduler.blocks import ROOT, BlockManager, BlockTable, Key
from tgi_async.scheduler.core import Core
from tgi_async.scheduler.request import Request


def check_places(blocks: BlockManager) -> None:
    """P1: free, used and cached part the pool. P2: no count of references is negative."""
    references = [blocks.references(block) for block in range(blocks.n_blocks)]
    require(min(references) >= 0, "P2", f"references {references}")
    used = {block for block, count in enumerate(references) if count}
    places = [*blocks._free, *blocks._cached, *used]
    require(
        sorted(places) == list(range(blocks.n_blocks)),
        "P1",
        f"free {blocks._free}, cached {list(blocks._cached)}, used {sorted(used)}",
    )
    require(blocks.n_free + blocks.n_cached + blocks.n_used == blocks.n_blocks, "P1", "counts")
    require(blocks.n_used == len(used), "P1", f"{blocks.n_used} used, not {len(used)}")
    for block in blocks._cached:
        node = blocks._node_of[block]
        require(node is not None and node.block == block, "P1", f"{block} is cached, without key")


def check_tables(blocks: BlockManager, tables: Collection[BlockTable]) -> int:
    """P2: references are tables. P3: what is being written is not shared. P5: what is announced can
    be reached until it is there.

    Returns how many blocks are shared.
    """
    holders = Counter(block for table in tables for block in table.blocks)
    for block in range(blocks.n_blocks):
        references = blocks.references(block)
        require(
            references == holders[block],
            "P2",
            f"block {block} has {references} references and {holders[block]} tables",
        )
    for table in tables:
        for block in table.blocks[table.n_computed // blocks.block_size :]:
            require(holders[block] == 1, "P3", f"block {block} is written and shared")
        announced = [node for node in table.pending if node.owner is table]
        held = [node for node in map(blocks._node_of.__getitem__, table.blocks) if node is not None]
        stay = {ROOT, *(node.id for node in (*held, *announced))}
        for node in announced:
            require(
                node.parent in stay, "P5", "a block is announced behind one that may be evicted"
            )
    return sum(count > 1 for count in holders.values())


def check_tree(
    blocks: BlockManager, acknowledged: Mapping[Slot, History], lawful: Collection[History]
) -> None:
    """P5: what can be hit was acknowledged, and is what its tokens say. S8: and was shown."""
    children: dict[int, list[Key]] = {}
    for parent, tokens in blocks._tree:
        children.setdefault(parent, []).append(tokens)
    reachable: list[tuple[int, History]] = [(ROOT, ())]
    while reachable:
        parent, history = reachable.pop()
        for tokens in children.get(parent, ()):
            node = blocks._tree[parent, tokens]
            if node.block is None:
                require(node.owner is not None, "P5", "a pending block that nobody computes")
                continue
            prefix = history + tuple(memoryview(tokens).cast("I"))
            require(prefix in lawful, "S8", f"{prefix} is cached but was never shown")
            for offset in range(blocks.block_size):
                seen = acknowledged.get((node.block, offset))
                due = prefix[: len(history) + offset + 1]
                require(seen == due, "P5", f"block {node.block} holds {seen}, not {due}")
            reachable.append((node.id, prefix))


def check_batch(core: Core, live: set[int]) -> None:
    """S7: who is live is known to the core, once. S1: the batch keeps its limits."""
    arrivals = [request.arrival for request in core.running]
    require(arrivals == sorted(arrivals), "S4", "running requests are not in order of arrival")
    known = [request.id for request in (*core.running, *core.waiting)]
    require(sorted(known) == sorted(live), "S7", f"the core has {known}, live are {live}")
    prefilling = sum(map(_in_mid_prefill, core.running))
    require(prefilling <= 1, "S1", f"{prefilling} rows are in mid-prefill")
    if len(core.running) > 1:
        pool = core.blocks.n_tokens
        committed = sum(one.n_prompt + one.max_new_tokens for one in core.running)
        require(committed <= core.budget.overcommit * pool, "S1", f"{committed} tokens admitted")


def check_work_conserved(core: Core, n_prefill_left: int, n_logits_left: int) -> None:
    """S3: after a plan that preempted nobody, the head would not have fitted.

    To fit, it leaves each running row a block to grow into, and one that was preempted finds room
    for all that it can still become: what returns for a few tokens is computed again and again.
    """
    head = core.waiting.head()
    if head is None or head.n_in_flight or not n_prefill_left or core.on_trial:
        return
    if len(core.running) == core.budget.max_rows:
        return
    if any(map(_in_mid_prefill, core.running)):
        return
    budget, size = core.budget, core.budget.block_size
    committed = sum(one.n_prompt + one.max_new_tokens for one in (*core.running, head))
    if core.running and committed > budget.overcommit * core.blocks.n_tokens:
        return
    owed = 0
    for request in core.running:
        assert request.table is not None
        held = len(request.table.blocks)
        next_end = min(request.n_planned + 1, request.limit)
        next_held = max(held, -(-next_end // size))
        owed += next_held - held + (-(-request.limit // size) > next_held)
    takes_no_hit = head.prompt_logprobs and not head.n_emitted
    at_once = [span.end for span in head.spans if not span.start]
    if takes_no_hit and n_logits_left < max(at_once, default=1):
        return
    ends = [at for at in range(len(head.tokens)) if not _within_a_span(head, at)]
    keys = [] if takes_no_hit else head.block_keys(size)[: ends[-1] // size]
    match = core.blocks.match(keys)
    if match.computing is not None:
        return
    n_hits = max(n for n in range(len(match.hits) + 1) if not _within_a_span(head, n * size))
    held = n_hits - core.blocks.n_taken(match.hits[:n_hits])
    end = head.limit if head.preempted else min(len(head.tokens) + 1, head.limit)
    needed = -(-end // size) - held
    require(
        owed + needed > core.blocks.n_available,
        "S3",
        f"{core.blocks.n_available} blocks are available, {owed} are owed to running rows, and "
        f"the head, request {head.id}, lacks {needed}",
    )


def _within_a_span(request: Request, end: int) -> bool:
    return any(span.start < end < span.end for span in request.spans)


def _in_mid_prefill(request: Request) -> bool:
    return request.n_planned < request.prefill_end and not request.decoding
