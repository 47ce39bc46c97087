from __future__ import annotations

import pytest
import torch

from workers.forward import CrossAttended, SeenImage
from workers.vision.cross import Sight, attend, expect, view_of

CPU = torch.device("cpu")
ONE, TWO, THREE = (torch.full((1,), float(n)) for n in range(3))


def seen(encoding: torch.Tensor, start: int, end: int | None = None) -> SeenImage:
    return SeenImage(bytes(16), encoding, start, end)


def sights(*rows: CrossAttended, looks_ahead: bool = False) -> list[tuple[list[int], Sight]]:
    view = view_of(rows, looks_ahead, CPU)
    if view is None:
        return []
    parts = view.tokens.split([sight.n for sight in view.sights])
    return [(part.tolist(), sight) for part, sight in zip(parts, view.sights, strict=True)]


def test_a_token_sees_an_image_from_its_first_position_until_its_end() -> None:
    row = CrossAttended(3, 8, 10, [seen(ONE, 12, 15), seen(TWO, 16)])
    assert sights(row) == [
        ([5, 6, 7], Sight(3, (ONE,), ahead=False)),
        ([9, 10], Sight(2, (TWO,), ahead=False)),
    ]


def test_images_that_are_seen_together_are_attended_to_at_once() -> None:
    row = CrossAttended(0, 4, 0, [seen(ONE, 1), seen(TWO, 2)])
    assert sights(row) == [
        ([1], Sight(1, (ONE,), ahead=False)),
        ([2, 3], Sight(2, (ONE, TWO), ahead=False)),
    ]


def test_rows_that_see_the_same_are_one() -> None:
    rows = [CrossAttended(at, 1, 30 + at, [seen(one, 5)]) for at, one in enumerate((ONE, TWO, ONE))]
    assert sights(*rows) == [
        ([0, 2], Sight(2, (ONE,), ahead=False)),
        ([1], Sight(1, (TWO,), ahead=False)),
    ]


def test_tokens_before_all_images_see_none_or_all_of_them_and_come_last() -> None:
    row = CrossAttended(0, 4, 1, [seen(ONE, 3, 9), seen(TWO, 9)])
    behind = ([2, 3], Sight(2, (ONE,), ahead=False))
    assert sights(row) == [behind]
    assert sights(row, looks_ahead=True) == [behind, ([0, 1], Sight(2, (ONE, TWO), ahead=True))]
    view = view_of([row], True, CPU)
    assert view is not None
    assert view.n_behind == 2


def test_where_nothing_is_seen_there_is_no_view() -> None:
    rows = [
        CrossAttended(0, 4, 0, [seen(ONE, 9)]),
        CrossAttended(4, 2, 8, [seen(ONE, 2, 8)]),
        CrossAttended(6, 2, 0, []),
    ]
    assert view_of(rows, False, CPU) is None
    assert view_of([], True, CPU) is None


@pytest.mark.parametrize("n_kv_heads", [1, 2, 6])
def test_attention_is_plain_attention_of_every_head(n_kv_heads: int) -> None:
    draw = torch.Generator().manual_seed(n_kv_heads)
    query = torch.randn(5, 6, 8, generator=draw)
    keys, values = torch.randn(2, n_kv_heads, 7, 8, generator=draw)
    per_head = 6 // n_kv_heads
    for head in range(6):
        scores = 0.3 * query[:, head] @ keys[head // per_head].T
        expected = scores.softmax(-1) @ values[head // per_head]
        found = attend(query, keys, values, 0.3)[:, head]
        torch.testing.assert_close(found, expected)


def test_arrays_may_have_more_dimensions_of_one_and_nothing_else() -> None:
    arrays = {"pixel_values": torch.zeros(1, 2, 3)}
    assert expect(arrays, "pixel_values", (2, 1, 3)).shape == (2, 1, 3)
    with pytest.raises(ValueError, match=r"pixel_values of an image is \[1, 2, 3\], the model's"):
        expect(arrays, "pixel_values", (3, 2))
    with pytest.raises(ValueError, match="needs the array mask, and was given pixel_values"):
        expect(arrays, "mask", (1,))
