from __future__ import annotations

import base64
from unittest import mock
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_async.images import source
from tgi_async.images.source import Refused, data_of, is_data

DATA = bytes(range(256)) * 3 + b"\xfb\xff"
PLAIN = base64.b64encode(DATA).decode()
MOST = 10_000


@pytest.mark.parametrize(
    "url",
    [
        f"data:image/png;base64,{PLAIN}",
        f"DATA:Image/PNG;BASE64,{PLAIN}",
        f"data:;base64,{PLAIN}",
        f"data:image/png;charset=utf-8;base64,{PLAIN}",
        f"data:image/png;name=a.png; base64,{PLAIN}",
        f"data:image/png;base64,{PLAIN.rstrip('=')}",
        f"data:image/png;base64,{quote(PLAIN, safe='')}",
        f"data:image/png;base64,{PLAIN}%0a",
        f"data:image/png;base64,{base64.urlsafe_b64encode(DATA).decode()}",
        f"data:image/png;base64,{base64.encodebytes(DATA).decode()}",
        "data:image/png;base64,\r\n " + PLAIN,
    ],
)
def test_the_forms_that_clients_send_are_read(url: str) -> None:
    assert is_data(url)
    assert data_of(url, MOST) == DATA


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("data:image/png;base64," + PLAIN[:-3], "length fits no number of bytes"),
        ("data:image/png;base64,AA==AAAA", "goes on behind its end"),
        ("data:image/png;base64,AA=A", "goes on behind its end"),
        ("data:image/png;base64,AA!A", "other characters"),
        ("data:image/png;base64,AA%41A", "other characters"),
        ("data:image/png;base64,AAÄA", "not ASCII"),
        ("data:image/png;base64,", "it is empty"),
        ("data:image/png;base64,====", "it is empty"),
        ("data:image/png,AAAA", "must be data:<type>;base64,<text>"),
        ("data:image/png;base64", "must be data:<type>;base64,<text>"),
        ("data:base64,AAAA", "must be data:<type>;base64,<text>"),
        ("data:" + "x" * 2000 + ";base64,AAAA", "must be data:<type>;base64,<text>"),
    ],
)
def test_what_is_no_base64_is_refused_in_words_of_tgi(url: str, why: str) -> None:
    with pytest.raises(
        Refused, match=f"^(base64 encoding is invalid|invalid image content): .*{why}"
    ):
        data_of(url, MOST)


def test_frames_with_commas_between_are_refused() -> None:
    # CVE-2026-5497: thousands of JPEG frames in one data URL, each of which was decoded.
    url = "data:video/jpeg;base64," + ",".join(["/9j/4AAQ"] * 5000)
    with pytest.raises(Refused, match=r"^base64 encoding is invalid: "):
        data_of(url, 10 << 20)


@pytest.mark.parametrize("n", [MOST + 1, 5 * MOST])
def test_what_is_too_large_is_refused_by_its_size(n: int) -> None:
    url = "data:;base64," + base64.b64encode(bytes(n)).decode()
    words = r"^Image size \d+ bytes exceeds maximum allowed size of 10000 bytes.*--max-image-fetch"
    with pytest.raises(Refused, match=words):
        data_of(url, MOST)
    fits = "data:;base64," + base64.b64encode(bytes(MOST)).decode()
    assert len(data_of(fits, MOST)) == MOST


@given(st.binary(min_size=1, max_size=40), st.integers(1, 9), st.integers(0, 7))
def test_what_is_decoded_in_pieces_is_the_whole(data: bytes, piece: int, gap: int) -> None:
    text = base64.b64encode(data).decode()
    text = text[:gap] + "\n " + text[gap:]
    with mock.patch.object(source, "PIECE", piece):
        assert data_of(f"data:;base64,{text}", MOST) == data


@given(st.sampled_from(["", "image/png;base64,", ";base64,AAAA"]), st.text(max_size=30))
def test_any_text_is_bytes_or_refused(start: str, rest: str) -> None:
    try:
        found = data_of(f"data:{start}{rest}", MOST)
    except Refused:
        return
    assert 0 < len(found) <= MOST
