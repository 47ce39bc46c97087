from __future__ import annotations

from typing import Any

import pytest
from msgspec import structs

from tgi_async.errors import GenerationError, ValidationError
from tgi_async.images.family import Family, Prepared
from tgi_async.images.images import ReadyImage
from tgi_async.images.placeholders import Placeholders, find_placeholders
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import PixelArray, Span

TOKEN = 9
PIXELS = [PixelArray("pixel_values", "float32", [1, 3, 2, 2], 0)]


def family(bidirectional: Any = "") -> Family:
    return Family("tiny", "<image>", "<image>", TOKEN, ("<image>",), bidirectional)


def image(n_tokens: int, letter: bytes = b"a") -> ReadyImage:
    prepared = Prepared(letter * 16, "<image>" * n_tokens, n_tokens, 48, 2, 2)
    return ReadyImage(prepared, f"/shared/{letter.decode()}", PIXELS, 48)


def placed(
    ids: list[int],
    *ready: ReadyImage,
    of: Family | None = None,
    start: int = 0,
    stop: int | None = None,
) -> Placeholders:
    return find_placeholders(
        ids, ready, of or family(), start=start, stop=len(ids) if stop is None else stop
    )


def test_each_image_begins_at_its_first_and_ends_behind_its_last_placeholder() -> None:
    """An image may have other tokens between its own, such as ends of rows."""
    a, b = image(3), image(1, b"b")
    found = placed([1, 9, 9, 2, 9, 3, 9, 4], a, b)
    assert [(one.start, one.end, one.path) for one in found.images] == [
        (1, 5, "/shared/a"),
        (6, 7, "/shared/b"),
    ]
    assert found.images[0].arrays == PIXELS
    assert found.salts == (Salt(1, 5, b"a" * 16), Salt(6, 7, b"b" * 16))
    assert found.held == (a, b)
    assert found.spans == ()
    assert found.n_tokens_of_each == [3, 1]


def test_equal_images_have_equal_salts_at_their_own_places() -> None:
    found = placed([9, 1, 9], image(1), image(1))
    assert [salt.digest for salt in found.salts] == [b"a" * 16] * 2
    assert [salt.start for salt in found.salts] == [0, 2]


@pytest.mark.parametrize("ids", [[1, 9, 9, 2], [1, 9, 9, 9, 9], [1, 2]])
def test_numbers_that_do_not_agree_are_an_error_of_this_request(ids: list[int]) -> None:
    with pytest.raises(GenerationError, match="placeholders for 3 rows"):
        placed(ids, image(3))


class TestWhatAttendsInBothDirections:
    def test_each_run_of_an_images_tokens(self) -> None:
        found = placed([1, 9, 9, 2, 9, 9, 3, 9], image(4), image(1), of=family("image"))
        assert found.spans == (Span(1, 3), Span(4, 6), Span(7, 8))

    def test_the_whole_prompt_if_it_has_an_image(self) -> None:
        assert placed([9, 1, 2], image(1), of=family("prompt")).spans == (Span(0, 3),)
        assert placed([9, 1, 2], image(1), of=family("prompt"), stop=2).spans == (Span(0, 2),)
        assert placed([1, 2, 3], of=family("prompt"), start=1).spans == ()

    def test_nothing_where_a_prompt_has_no_image(self) -> None:
        assert placed([1, 2, 3], of=family("image")).spans == ()


def test_a_prefix_that_sees_what_is_to_come_is_shared_where_all_images_are_the_same() -> None:
    ahead = structs.replace(family(), looks_ahead=True)
    a, b = image(1), image(1, b"b")
    salts = [placed([1, 9, 2, 9], *two, of=ahead).salts for two in ((a, b), (a, a), (b, a))]
    assert [(salt.start, salt.end) for (salt,) in salts] == [(0, 1)] * 3
    assert len({salt.digest for (salt,) in salts}) == 3
    assert placed([1, 9, 2, 9], a, b, of=ahead).salts == salts[0]
    assert placed([1, 2], of=ahead).salts == ()


class TestCutPrompts:
    ids = (1, 9, 9, 2, 9, 9, 3)

    def test_an_image_before_the_cut_is_left_out(self) -> None:
        a, b = image(2), image(2, b"b")
        found = placed(list(self.ids), a, b, of=family("image"), start=3)
        assert found.held == (b,)
        assert [(one.start, one.end) for one in found.images] == [(1, 3)]
        assert found.spans == (Span(1, 3),)

    def test_an_image_behind_the_cut_is_left_out(self) -> None:
        a, b = image(2), image(2, b"b")
        found = placed(list(self.ids), a, b, start=0, stop=4)
        assert found.held == (a,)

    @pytest.mark.parametrize(("start", "stop"), [(2, 7), (5, 7), (0, 2), (0, 5)])
    def test_none_is_cut_in_two(self, start: int, stop: int) -> None:
        with pytest.raises(ValidationError, match=r"inside of image [12] of 2.* would be kept"):
            placed(list(self.ids), image(2), image(2, b"b"), start=start, stop=stop)
