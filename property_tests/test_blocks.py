"""The block manager alone, under any order of opening, growing, computing and closing tables."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from property_tests.invariants import check_places, check_tables, check_tree
from property_tests.model import History, Slot
from tgi_async.scheduler.blocks import BlockManager, BlockTable, Salt, keys_of
from tgi_async.wire.messages import CachePool

TOKENS = st.integers(0, 2)


class Sequence:
    """A table, and the tokens that are to be in it."""

    def __init__(self, table: BlockTable, tokens: list[int]) -> None:
        self.table = table
        self.tokens = tokens


class BlockMachine(RuleBasedStateMachine):
    reached: ClassVar[Counter[str]] = Counter()

    @initialize(
        n_blocks=st.integers(1, 10),
        block_size=st.integers(1, 4),
        stem=st.lists(TOKENS, min_size=20, max_size=20),
    )
    def start(self, n_blocks: int, block_size: int, stem: list[int]) -> None:
        self.blocks = BlockManager([CachePool(n_blocks)], block_size)
        self.stem = stem
        self.sequences: list[Sequence] = []
        self.memory: dict[Slot, History] = {}
        self.lawful: set[History] = set()

    @rule(
        shared=st.integers(0, 20),
        own=st.lists(TOKENS, min_size=1, max_size=4),
        announces=st.booleans(),
    )
    def open(self, shared: int, own: list[int], announces: bool) -> None:
        tokens = self.stem[:shared] + own
        keys = keys_of(tokens, self.blocks.block_size)
        match = self.blocks.match(keys[: (len(tokens) - 1) // self.blocks.block_size])
        hits = match.hits if announces else []
        fresh = -(-len(tokens) // self.blocks.block_size) - len(hits)
        if self.blocks.n_taken(hits) + fresh > self.blocks.n_available:
            return
        self.reached["wait"] += match.computing is not None
        self.reached["hit"] += len(hits)
        table = self.blocks.open(hits, keys if announces else [])
        granted = self.blocks.grow(table, fresh)
        self.reached["eviction"] += sum((block, 0) in self.memory for block in granted)
        for block in granted:
            for offset in range(self.blocks.block_size):
                self.memory.pop((block, offset), None)
        for end in range(len(tokens) + 1):
            self.lawful.add(tuple(tokens[:end]))
        self.sequences.append(Sequence(table, tokens))

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 9), n=st.integers(1, 9))
    def compute(self, which: int, n: int) -> None:
        sequence = self.sequences[which % len(self.sequences)]
        table, tokens = sequence.table, sequence.tokens
        end = min(table.n_computed + n, len(tokens))
        for position in range(table.n_computed, end):
            index, offset = divmod(position, self.blocks.block_size)
            self.memory[table.blocks[index], offset] = tuple(tokens[: position + 1])
        table.n_computed = end
        self.blocks.commit(table, keys_of(tokens, self.blocks.block_size))

    @precondition(lambda self: self.sequences)
    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        self.blocks.close(self.sequences.pop(which % len(self.sequences)).table)

    @rule(happens=st.sampled_from((False, False, False, True)))
    def forget_all(self, happens: bool) -> None:
        if happens:
            self.blocks.reset()
            self.sequences.clear()
            self.memory.clear()

    @invariant()
    def all_is_in_its_place(self) -> None:
        if not hasattr(self, "blocks"):
            return
        check_places(self.blocks)
        tables = [sequence.table for sequence in self.sequences]
        self.reached["sharing"] += check_tables(self.blocks, tables)
        check_tree(self.blocks, self.memory, self.lawful)

    def teardown(self) -> None:
        if not hasattr(self, "blocks"):
            return
        for sequence in self.sequences:
            self.blocks.close(sequence.table)
        self.sequences.clear()
        self.all_is_in_its_place()
        assert self.blocks.n_used == 0


def test_blocks_are_in_one_place_and_hold_what_their_tokens_say() -> None:
    BlockMachine.reached.clear()
    run_state_machine_as_test(BlockMachine, settings=settings())
    assert all(BlockMachine.reached[name] for name in ("hit", "wait", "eviction", "sharing"))


SALTS = [bytes([number]) * 16 for number in range(3)]


@st.composite
def salted(draw: st.DrawFn) -> tuple[list[int], tuple[Salt, ...]]:
    """Tokens, and salts of some of their places."""
    tokens = draw(st.lists(st.integers(0, 1), min_size=1, max_size=20))
    n = draw(st.integers(0, 3))
    borders = sorted(draw(st.lists(st.integers(0, 20), min_size=2 * n, max_size=2 * n)))
    spans = [pair for pair in zip(borders[::2], borders[1::2], strict=True) if pair[0] < pair[1]]
    return tokens, tuple(Salt(*span, draw(st.sampled_from(SALTS))) for span in spans)


def salted_places(salts: tuple[Salt, ...], n: int) -> list[tuple[Salt, ...]]:
    """The salts of each of the first `n` positions."""
    return [tuple(salt for salt in salts if salt.start <= at < salt.end) for at in range(n)]


@given(salted(), salted(), st.booleans(), st.integers(1, 4), st.integers(0, 5))
def test_blocks_are_shared_up_to_the_first_other_token_or_salt(
    one: tuple[list[int], tuple[Salt, ...]],
    other: tuple[list[int], tuple[Salt, ...]],
    same_tokens: bool,
    size: int,
    n_made: int,
) -> None:
    tokens, salts = one
    others, other_salts = (tokens, other[1]) if same_tokens else other
    manager = BlockManager([CachePool(20)], size)
    keys = keys_of(tokens, size, salts)
    table = manager.open([], keys)
    manager.grow(table, len(keys))
    table.n_computed = size * len(keys)
    manager.commit(table, keys)

    first = min(n_made, len(others) // size)
    other_keys = keys_of(others[: first * size], size, other_salts)
    other_keys += keys_of(others[first * size :], size, other_salts, first * size)
    hits = manager.match(other_keys).hits

    shared = 0
    ours = list(zip(tokens, salted_places(salts, len(tokens)), strict=True))
    theirs = list(zip(others, salted_places(other_salts, len(others)), strict=True))
    while (end := (shared + 1) * size) <= min(len(ours), len(theirs)):
        if ours[:end] != theirs[:end]:
            break
        shared += 1
    assert len(hits) == shared
