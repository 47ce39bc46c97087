"""Runs of one byte in few tokens, which complete a text that must only become long enough."""

from __future__ import annotations

from collections.abc import Mapping


class Runs:
    """The tokens of one vocabulary that repeat a byte. A set of bytes is a bit mask."""

    def __init__(self, ids: Mapping[bytes, int]) -> None:
        """Make the runs. `ids`: the tokens, by what they add to a text."""
        self._tokens: dict[int, list[tuple[int, int]]] = {}
        """By byte: how often each token repeats it, most first, and its id."""
        for text, token in ids.items():
            if text.count(text[0]) == len(text):
                self._tokens.setdefault(text[0], []).append((len(text), token))
        for tokens in self._tokens.values():
            tokens.sort(reverse=True)
        self._bytes: dict[int, int | None] = {}
        self._worst: dict[int, list[int]] = {}

    def tokens(self, allowed: int, n: int) -> list[int] | None:
        """Return few tokens that spell `n` equal bytes of those allowed; None where there are
        none."""
        byte = self._byte(allowed)
        if byte is None:
            return None
        found: list[int] = []
        for length, token in self._tokens[byte]:
            found += [token] * (n // length)
            n %= length
        return found

    def count(self, allowed: int, n: int) -> int | None:
        """Return the number of those tokens."""
        byte = self._byte(allowed)
        return None if byte is None else self._count(byte, n)

    def most(self, allowed: int, n: int) -> int | None:
        """Return an upper bound of `count` for `n` bytes and for any fewer."""
        byte = self._byte(allowed)
        if byte is None:
            return None
        if byte not in self._worst:
            worst = self._worst[byte] = [0]
            for length in range(1, self._tokens[byte][0][0]):
                worst.append(max(worst[-1], self._count(byte, length)))
        worst = self._worst[byte]
        return n // len(worst) + worst[min(n, len(worst) - 1)]

    def _count(self, byte: int, n: int) -> int:
        count = 0
        for length, _ in self._tokens[byte]:
            count += n // length
            n %= length
        return count

    def _byte(self, allowed: int) -> int | None:
        """Return the byte with the longest token, among those that are a token alone."""
        if allowed not in self._bytes:
            possible = [
                (tokens[0][0], -byte)
                for byte, tokens in self._tokens.items()
                if allowed >> byte & 1 and tokens[-1][0] == 1
            ]
            self._bytes[allowed] = -max(possible)[1] if possible else None
        return self._bytes[allowed]
