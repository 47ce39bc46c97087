from __future__ import annotations

import time

import pytest

from tgi_async.images.markdown import split


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", [""]),
        ("no image", ["no image"]),
        ("![](http://a/b.png)", ["", "http://a/b.png", ""]),
        ("a ![](u)\n![](v) b", ["a ", "u", "\n", "v", " b"]),
        ("![](u)![](v)", ["", "u", "", "v", ""]),
        ("![]()", ["", "", ""]),
        ("![alt](u)", ["![alt](u)"]),
        ("[](u)", ["[](u)"]),
        ("![](u", ["![](u"]),
        ("![](u) ![](v", ["", "u", " ![](v"]),
        ("![](a(b)c)", ["", "a(b", "c)"]),
        ("![](data:image/png;base64,AA==)", ["", "data:image/png;base64,AA==", ""]),
    ],
)
def test_images_are_found_as_tgi_finds_them(text: str, parts: list[str]) -> None:
    assert split(text) == parts


def test_beginnings_without_an_end_take_no_time() -> None:
    text = "![](" * 500_000
    began = time.process_time()
    assert split(text) == [text]
    assert time.process_time() - began < 0.5
