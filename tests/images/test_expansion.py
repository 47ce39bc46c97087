"""Texts of prompts with images. That they are transformers' own is shown in
tests/workers/images/test_families.py."""

from __future__ import annotations

import pytest

from tgi_async.errors import ValidationError
from tgi_async.images.expansion import expand
from tgi_async.images.family import Family

F = "<fake_token_around_image>"


def family(kind: str, placeholder: str = "<image>", bos_token: str = "<s>") -> Family:
    return Family(
        kind=kind,
        placeholder=placeholder,
        image_token=placeholder,
        image_token_id=7,
        reserved=(placeholder,),
        bos_token=bos_token,
    )


@pytest.mark.parametrize(
    ("kind", "text", "images", "expanded"),
    [
        ("llava", "USER: <image>\n<image>\nHi", ["AA", "BBB"], "USER: AA\nBBB\nHi"),
        ("llava", "<image>", [r"\1<image>"], r"\1<image>"),
        (
            "idefics",
            "User: <image> Look <image><image>",
            [f"{F}I{F}"] * 3,
            f"User:{F}I{F}Look{F}I{F}I{F}",
        ),
        ("idefics2", "<image><image>\n", [f"{F}<A>{F}", f"{F}<B>{F}"], f"{F}<A>{F}<B>{F}\n"),
        ("idefics2", "a<image>b<image> c", [f"{F}<A>{F}"] * 2, f"a{F}<A>{F} b{F}<A>{F} c"),
        ("paligemma", "What <image>is it<image>?", ["A", "B"], "AB<s>What is it?\n"),
        ("mllama", "<image><image>Hi<image>", ["I"] * 3, "II<s>HiI"),
        ("mllama", "Hi<image>", ["I"], "<s>HiI"),
        ("mllama", "<s>Hi<image>", ["I"], "<s>HiI"),
        ("mllama", "<image>", ["I"], "I<s>"),
    ],
)
def test_images_take_the_places_of_their_placeholders(
    kind: str, text: str, images: list[str], expanded: str
) -> None:
    assert expand(family(kind), text, images) == expanded


@pytest.mark.parametrize("kind", ["llava", "idefics", "idefics2", "paligemma", "mllama"])
def test_a_text_without_images_stays_as_it_is(kind: str) -> None:
    assert expand(family(kind), f" Hi{F}{F}there ", []) == f" Hi{F}{F}there "


def test_texts_around_an_image_make_no_image_where_they_are_put_together() -> None:
    with pytest.raises(ValidationError, match="look like another image, <image>,"):
        expand(family("paligemma"), "<im<image>age>", ["<image><image>"])


@pytest.mark.parametrize(
    ("text", "images", "said"),
    [
        ("Hi", ["A"], "has 1 images and 0 places for them"),
        ("<image> <image>", ["A"], "has 1 images and 2 places for them"),
        ("<image>", [], "has 0 images and 1 places for them"),
    ],
)
def test_another_number_of_placeholders_is_refused(text: str, images: list[str], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        expand(family("llava"), text, images)
