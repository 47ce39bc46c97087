"""Which replica computed what a prompt begins with: it may have it in its cache still.

A prompt is a chain of keys, one for each `CHUNK` bytes from its beginning, behind the tenant's. A
table keeps for each key the replica that had it last, and is bounded: what was not seen for longest
is forgotten. It is a guess about caches, which only costs time where it is wrong.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import msgspec

CHUNK = 256
MOST_CHUNKS = 64
"""Of a prompt: what is further behind makes no difference to where it goes."""
MOST_KEYS = 2**17
SLACK = 8
"""Requests that a replica may have more than the one with the fewest, for a prefix's sake."""
FACTOR = 1.5
"""The same relative to the mean, where there are many."""


class _Body(msgspec.Struct):
    """What the bodies of all routes have a prompt in."""

    inputs: msgspec.Raw = msgspec.Raw()
    prompt: msgspec.Raw = msgspec.Raw()
    messages: msgspec.Raw = msgspec.Raw()


def keys_of(body: bytes, tenant: str = "") -> list[int]:
    """Return the keys of a request, which may be cut short or no JSON. Never empty with a
    tenant."""
    try:
        found = msgspec.json.decode(body, type=_Body)
        text = bytes(found.messages) or bytes(found.inputs) or bytes(found.prompt)
    except msgspec.DecodeError:
        text = body
    key = hash(tenant)
    keys = [key] if tenant else []
    # An incomplete chunk is a prefix of nothing but itself.
    for start in range(0, min(len(text) - CHUNK + 1, CHUNK * MOST_CHUNKS), CHUNK):
        key = hash((key, text[start : start + CHUNK]))
        keys.append(key)
    return keys


class Found(NamedTuple):
    replica: str
    n_keys: int
    """How many of the request's keys it had; 0 where it was taken for its load."""


class PrefixTable:
    """The replicas by keys. Replicas are names, and whoever has no load is not there."""

    def __init__(self, most: int = MOST_KEYS) -> None:
        self._most = most
        self._replicas: OrderedDict[int, str] = OrderedDict()
        self._turn = 0

    def __len__(self) -> int:
        return len(self._replicas)

    def choose(self, keys: Sequence[int], loads: Mapping[str, float]) -> Found:
        """Return the replica with the longest of `keys` that is not much busier than others, else
        the one with the least load, and remember it. `loads` are requests, of at least one
        replica."""
        least, mean = min(loads.values()), sum(loads.values()) / len(loads)
        most = max(least + SLACK, mean * FACTOR)
        found = None
        for n in range(len(keys), 0, -1):
            replica = self._replicas.get(keys[n - 1])
            if replica is not None and loads.get(replica, most + 1) <= most:
                found = Found(replica, n)
                break
        if found is None:
            # In turns, so that prefixes which come one after another do not all go to the first.
            idle = [name for name, load in loads.items() if load == least]
            self._turn += 1
            found = Found(idle[self._turn % len(idle)], 0)
        for key in keys:
            self._replicas[key] = found.replica
            self._replicas.move_to_end(key)
        while len(self._replicas) > self._most:
            self._replicas.popitem(last=False)
        return found
