from __future__ import annotations

import torch

from workers.sampling.murmur import mix, spread


def words(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64).int()


def test_the_finalizer_gives_the_published_hashes_of_the_empty_string() -> None:
    # Of no bytes MurmurHash3's 32-bit hash is the finalizer of its seed.
    found = mix(words(0, 1, 0xFFFFFFFF))
    assert torch.equal(found, words(0, 0x514E28B7, 0x81F16F39))


def test_no_two_tokens_have_the_same_words() -> None:
    ids = torch.arange(2**18)
    assert len(spread(ids).unique()) == len(mix(spread(ids)).unique()) == len(ids)


def test_each_bit_that_changes_changes_half_of_the_bits() -> None:
    before = spread(torch.arange(4096))
    hashes = mix(before.clone())
    for bit in range(32):
        changed = mix(before ^ words(1 << bit)) ^ hashes
        shares = [((changed >> i) & 1).double().mean().item() for i in range(32)]
        assert all(abs(share - 0.5) < 0.05 for share in shares)
