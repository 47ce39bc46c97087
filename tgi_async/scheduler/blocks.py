"""Paged blocks and the prefix cache: which request holds which block of the KV cache.

The pool of a cache group, of which there is one, is `n_blocks` blocks of `block_size` tokens. Each
block is in exactly one of three places: free, used (at least one block table holds it), or cached
(no table holds it, but its content can still be hit; evicted least recently used first).

The prefix cache is a tree of full blocks. A node stands for "these tokens after that parent", and
is found by exact equality of (parent, token ids, salts), so a hit is proved by its tokens and never
by a hash alone. A node's id is never used twice: what hung under an evicted node cannot be reached
through a new one. A node is *pending* while the block table that means to compute it is running,
and *ready*, with a block, once the step that filled that block was acknowledged.

Paging is vLLM's (arXiv 2309.06180); sharing between running requests is RadixAttention's
(arXiv 2312.07104) at the granularity of a block.
"""

from __future__ import annotations

import struct
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

from tgi_async.wire.messages import CachePool

ROOT = 0

Key = bytes
"""The tokens of a full block, four bytes each, and its salts.

A tuple of them would take six times the memory, and three times as long to look up.
"""


class Salt(NamedTuple):
    """What keys and values at positions `start` to `end - 1` depend on besides the tokens.

    An adapter or a tenant salts position 0: all blocks follow the first, so that nothing is shared
    with others. An image salts the positions of its placeholders, and blocks before it are shared.
    """

    start: int
    end: int
    digest: bytes
    """16 bytes: of the adapter's weights, the tenant's name, the image's pixels."""


def keys_of(
    tokens: list[int], block_size: int, salts: Sequence[Salt] = (), first: int = 0
) -> list[Key]:
    """Return the keys of all blocks that `tokens`, each of them below 2**32, fill.

    `first` is the position of the first token, at which a block begins; salts are in order.
    """
    packed = array("I", tokens).tobytes()
    size = 4 * block_size
    keys = [packed[start : start + size] for start in range(0, len(packed) - size + 1, size)]
    for salt in salts:
        # The places too: two images whose border moves have equal tokens and equal digests.
        salted = struct.pack("<qq", salt.start, salt.end) + salt.digest
        begin = max(0, (salt.start - first) // block_size)
        end = min(len(keys), -(-(salt.end - first) // block_size))
        for index in range(begin, end):
            keys[index] += salted
    return keys


class Node:
    """A full block of tokens behind its parent."""

    __slots__ = ("block", "id", "owner", "parent", "tokens")

    def __init__(self, id: int, parent: int, tokens: Key, owner: BlockTable) -> None:
        self.id = id
        self.parent = parent
        self.tokens = tokens
        self.block: int | None = None
        self.owner: BlockTable | None = owner
        """The table that is computing it; None once it is ready or given up."""


class BlockTable:
    """The blocks of one admitted request, in order of position."""

    __slots__ = (
        "blocks",
        "failed",
        "last_step",
        "lineage",
        "n_committed",
        "n_computed",
        "pending",
    )

    def __init__(self, blocks: list[int], lineage: int, n_computed: int) -> None:
        self.blocks = blocks
        self.lineage = lineage
        """Id of the node of the last full block whose content is known to be computed."""
        self.n_committed = len(blocks)
        """How many leading blocks have a node of the tree as their content."""
        self.n_computed = n_computed
        """Positions whose keys and values are known to be in the blocks."""
        self.pending: list[Node] = []
        self.last_step = 0
        """The last step that may touch these blocks."""
        self.failed = False
        """A step of this table failed: what later ones put in the blocks is not to be cached."""


class Match(NamedTuple):
    """What the cache holds of a prompt."""

    hits: list[Node]
    computing: Node | None
    """The next node, if a running request is computing it just now."""


class BlockManager:
    """Grants, shares, caches and frees blocks. Callers never ask for more than `n_available`."""

    def __init__(self, pools: Sequence[CachePool], block_size: int) -> None:
        """`pools` are those of the model's cache groups. Raises ValueError for more than one."""
        if len(pools) != 1:
            raise ValueError(
                f"blocks are managed for one cache group, and the model has {len(pools)}: "
                f"{', '.join(pool.kind for pool in pools)}"
            )
        n_blocks = pools[0].n_blocks
        if n_blocks < 1 or block_size < 1:
            raise ValueError(
                f"a pool needs at least one block of one token, got {n_blocks} of {block_size}"
            )
        self.n_blocks = n_blocks
        self.block_size = block_size
        self.n_shared = 0
        """How often a block that can be hit came to be held: with each, what a waiting prompt needs
        falls by one block at most, and it never falls otherwise."""
        self._next_id = ROOT + 1
        self.reset()

    def reset(self) -> None:
        """Forget all content and all tables, as when the worker that held them has died."""
        self._free = list(range(self.n_blocks - 1, -1, -1))
        self._references = [0] * self.n_blocks
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._node_of: list[Node | None] = [None] * self.n_blocks
        self._tree: dict[tuple[int, Key], Node] = {}

    @property
    def n_free(self) -> int:
        return len(self._free)

    @property
    def n_cached(self) -> int:
        return len(self._cached)

    @property
    def n_available(self) -> int:
        """Blocks that can be granted now: free ones, and cached ones after eviction."""
        return len(self._free) + len(self._cached)

    @property
    def n_tokens(self) -> int:
        """Tokens that the pool has room for."""
        return self.n_blocks * self.block_size

    @property
    def n_used(self) -> int:
        return self.n_blocks - self.n_available

    def references(self, block: int) -> int:
        """How many tables hold this block."""
        return self._references[block]

    def n_exclusive(self, table: BlockTable) -> int:
        """Blocks that become available when this table is closed."""
        references = self._references
        return sum(references[block] == 1 for block in table.blocks)

    def match(self, keys: list[Key]) -> Match:
        """Walk the tree along full blocks of tokens. The caller leaves out what it must compute."""
        hits: list[Node] = []
        parent = ROOT
        tree = self._tree
        for tokens in keys:
            node = tree.get((parent, tokens))
            if node is None:
                break
            if node.block is None:
                return Match(hits, node)
            hits.append(node)
            parent = node.id
        return Match(hits, None)

    def n_taken(self, hits: list[Node]) -> int:
        """Return how many of these hits are not held by any table, and so use up availability."""
        return sum(self._references[node.block] == 0 for node in hits if node.block is not None)

    def open(self, hits: list[Node], keys: list[Key]) -> BlockTable:
        """A table that shares the hits, and announces the rest of `keys` as being computed.

        `keys` are the full blocks of everything the request will compute at once, hits first. Those
        behind a node that the table does not hold are not announced: if that node were evicted,
        nobody could reach them, and who waits for them would wait for nothing.
        """
        blocks = [node.block for node in hits if node.block is not None]
        self._hold(blocks)
        parent = hits[-1].id if hits else ROOT
        table = BlockTable(blocks, parent, len(blocks) * self.block_size)
        for tokens in keys[len(hits) :]:
            if (parent, tokens) in self._tree:
                break
            node = self._add(parent, tokens, table)
            table.pending.append(node)
            parent = node.id
        return table

    def grow(self, table: BlockTable, n: int) -> list[int]:
        """Grant `n` blocks, evicting cached content where none is free."""
        granted = []
        for _ in range(n):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._cached.popitem(last=False)
                node = self._node_of[block]
                assert node is not None
                del self._tree[node.parent, node.tokens]
                self._node_of[block] = None
            self._references[block] = 1
            granted.append(block)
        table.blocks += granted
        return granted

    def commit(self, table: BlockTable, keys: list[Key]) -> None:
        """Put the table's full computed blocks, whose tokens are `keys`, into the tree.

        Where another table was first with the same content, or has announced it, this one's copy
        stays its own.
        """
        n_full = min(table.n_computed // self.block_size, len(keys))
        for index in range(table.n_committed, n_full):
            tokens = keys[index]
            node = self._tree.get((table.lineage, tokens))
            if node is None:
                node = self._add(table.lineage, tokens, table)
            if node.block is None and node.owner is table:
                block = table.blocks[index]
                node.block = block
                node.owner = None
                self._node_of[block] = node
                self.n_shared += 1
            table.lineage = node.id
        table.n_committed = max(table.n_committed, n_full)

    def close(self, table: BlockTable) -> None:
        """Give the blocks back; what is in the tree stays cached, its deepest block evicted first.

        What the table announced but did not compute is taken out of the tree.
        """
        for node in table.pending:
            if node.owner is table:
                node.owner = None
                del self._tree[node.parent, node.tokens]
        table.pending = []
        references = self._references
        for block in reversed(table.blocks):
            references[block] -= 1
            if references[block] == 0:
                if self._node_of[block] is None:
                    self._free.append(block)
                else:
                    self._cached[block] = None
        table.blocks = []

    def _hold(self, blocks: list[int]) -> None:
        references, cached = self._references, self._cached
        for block in blocks:
            if references[block] == 0:
                del cached[block]
                self.n_shared += 1
            references[block] += 1

    def _add(self, parent: int, tokens: Key, owner: BlockTable) -> Node:
        node = Node(self._next_id, parent, tokens, owner)
        self._next_id += 1
        self._tree[parent, tokens] = node
        return node
