from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from workers.sampling.random import Purpose, keys, philox4x32


def words(*values: int) -> Any:
    """A tuple of as many arrays of one uint64."""
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0,) * 4, (0,) * 2, (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_words_that_its_authors_published(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    found = philox4x32(words(*counter), words(*key))
    assert tuple(int(word[0]) for word in found) == expected


def key(seed: int = 0, choice: int = 0, position: int = 0) -> tuple[int, ...]:
    seeds, choices, positions = words(seed, choice, position)
    return tuple(keys(seeds, choices, positions, Purpose.TOKEN)[0].tolist())


def test_a_key_is_the_first_two_words_of_the_counter_made_of_position_choice_and_purpose() -> None:
    counter = words(5, 2, Purpose.TOKEN, 0)
    first, second, _, _ = philox4x32(counter, words(0x89ABCDEF, 0x01234567))
    seeds, choices, positions = words(0x0123456789ABCDEF, 2, 5)
    found = keys(seeds, choices, positions, Purpose.TOKEN)
    assert found.dtype == np.int32
    assert (found.view(np.uint32) == np.stack([first, second], axis=1)).all()


def test_each_of_seed_choice_and_position_changes_both_words() -> None:
    drawn = [key(), key(seed=1), key(seed=1 << 32), key(choice=1), key(position=1)]
    assert [len(set(word)) for word in zip(*drawn, strict=True)] == [5, 5]


def test_the_largest_seed_is_taken_whole() -> None:
    assert key(seed=2**64 - 1) != key(seed=2**32 - 1)


def test_a_key_does_not_depend_on_those_made_with_it() -> None:
    positions = np.arange(100, dtype=np.uint64)
    together = keys(np.full_like(positions, 7), np.zeros_like(positions), positions, Purpose.TOKEN)
    assert [tuple(one) for one in together.tolist()] == [
        key(seed=7, position=i) for i in range(100)
    ]


def test_keys_are_spread_evenly() -> None:
    positions = np.arange(20_000, dtype=np.uint64)
    found = keys(np.full_like(positions, 3), np.zeros_like(positions), positions, Purpose.TOKEN)
    for word in found.T:
        counts, _ = np.histogram(word, bins=50, range=(-(2**31), 2**31))
        expected = len(positions) / 50
        assert counts.sum() == len(positions)
        # chi-square with 49 degrees of freedom: above 94 once in 10,000 even generators.
        assert ((counts - expected) ** 2 / expected).sum() < 94
