from __future__ import annotations

from typing import Any

import pytest

from tgi_async.errors import GenerationError, ValidationError
from tgi_async.images.family import Family, Prepared
from tgi_async.images.images import ReadyImage
from tgi_async.images.places import places
from tgi_async.scheduler.blocks import Salt
from tgi_async.wire.messages import PixelArray, Span

TOKEN = 9
PIXELS = [PixelArray("pixel_values", "float32", [1, 3, 2, 2], 0)]


def family(bidirectional: Any = "") -> Family:
    return Family("tiny", "<image>", "<image>", TOKEN, ("<image>",), bidirectional)


def image(n_tokens: int, letter: bytes = b"a") -> ReadyImage:
    prepared = Prepared(letter * 16, "<image>" * n_tokens, n_tokens, 48, 2, 2)
    return ReadyImage(prepared, f"/shared/{letter.decode()}", PIXELS)


def placed(ids: list[int], *ready: ReadyImage, of: Family | None = None, **kept: int) -> Any:
    return places(ids, ready, of or family(), **{"start": 0, "stop": len(ids), **kept})


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

    def test_the_whole_prompt_with_an_image_or_without(self) -> None:
        assert placed([9, 1, 2], image(1), of=family("prompt")).spans == (Span(0, 3),)
        assert placed([1, 2, 3], of=family("prompt"), start=1).spans == (Span(0, 2),)

    def test_nothing_where_a_prompt_has_no_image(self) -> None:
        assert placed([1, 2, 3], of=family("image")).spans == ()


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

    @pytest.mark.parametrize("kept", [{"start": 2}, {"start": 5}, {"stop": 2}, {"stop": 5}])
    def test_none_is_cut_in_two(self, kept: dict[str, int]) -> None:
        with pytest.raises(ValidationError, match=r"inside of image [12] of 2.* would be kept"):
            placed(list(self.ids), image(2), image(2, b"b"), **kept)
