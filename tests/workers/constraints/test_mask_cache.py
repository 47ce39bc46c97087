"""Masks that are kept: which places share one, and when one is believed."""

from __future__ import annotations

import numpy as np
import pytest

from tgi_async.grammar.grammar import Regex
from workers.constraints import mask_cache
from workers.constraints.expressions import Expressions
from workers.constraints.language import language
from workers.constraints.mask_cache import Mask, MaskCache
from workers.constraints.nodes import Expression

LONGEST = 8


def mask_of(*words: int) -> Mask:
    return np.array(words, np.int32)


def after(expressions: Expressions, pattern: str, text: bytes) -> Expression:
    node = language(expressions, Regex(pattern), lambda name: None)
    return expressions.after_text(node, text)


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [
        ("[a-z ]{4000}", b"a", b"many more letters"),
        ("[a-z ]{4000}x", b"a", b"a" * 3991),
        ("a*b", b"", b"aaaa"),
        ("a{2,90}b", b"aaa", b"aaaaaaaaa"),
        ("(, [a-z]){3,30};", b", a, a, a", b", a, a, a, a, a"),
        ("(.|\n){100}", b"a", "각".encode()),
    ],
)
def test_places_share_a_mask_where_no_token_tells_them_apart(
    pattern: str, text: bytes, other: bytes
) -> None:
    x = Expressions()
    cache = MaskCache(x, LONGEST)
    one, two = after(x, pattern, text), after(x, pattern, other)
    assert cache.window(one) is cache.window(two)


@pytest.mark.parametrize(
    ("pattern", "text", "other"),
    [
        ("[a-z ]{4000}", b"a" * 3991, b"a" * 3992),
        ("a{2,90}b", b"a", b"aa"),
        ("a{2,90}b", b"a" * 80, b"a" * 82 + b"a"),
        ("(a|b{9})c{9}", b"a", b"bb"),
    ],
)
def test_other_places_have_masks_of_their_own(pattern: str, text: bytes, other: bytes) -> None:
    x = Expressions()
    cache = MaskCache(x, LONGEST)
    assert cache.window(after(x, pattern, text)) is not cache.window(after(x, pattern, other))


def test_a_mask_is_believed_once_it_came_twice() -> None:
    x = Expressions()
    cache = MaskCache(x, LONGEST)
    node = after(x, "a*b", b"")
    cache.put(node, mask_of(5))
    assert cache.get(node) is None
    cache.put(node, mask_of(5))
    assert cache.get(node) == mask_of(5)


def test_where_equal_places_have_different_masks_nothing_is_kept_any_more() -> None:
    x = Expressions()
    cache = MaskCache(x, LONGEST)
    node, other = after(x, "a*b", b""), after(x, "ab", b"a")
    for _ in range(2):
        cache.put(other, mask_of(1))
    cache.put(node, mask_of(5))
    cache.put(node, mask_of(7))
    for one in (node, other):
        assert cache.get(one) is None
        cache.put(one, mask_of(5))
        cache.put(one, mask_of(5))
        assert cache.get(one) is None
    assert cache.nbytes < 1000


def test_what_was_not_needed_lately_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_cache, "MAX_BYTES", 12)
    x = Expressions()
    cache = MaskCache(x, LONGEST)
    nodes = [after(x, "abcde", b"abcd"[:n]) for n in range(4)]
    for node in nodes[:3]:
        cache.put(node, mask_of(1))
        cache.put(node, mask_of(1))
    assert cache.get(nodes[0]) is not None
    cache.put(nodes[3], mask_of(1))
    cache.put(nodes[3], mask_of(1))
    assert [cache.get(node) is not None for node in nodes] == [True, False, True, True]
