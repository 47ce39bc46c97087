from __future__ import annotations

from typing import Any

import pytest

from tgi_async.api.resume.event_id import (
    MOST_CHARACTERS,
    MOST_CHOICES,
    EventId,
    prefix_of,
    request_hash,
)
from tgi_async.errors import ValidationError

SEED = 0x0102030405060708
REQUEST = request_hash("/", b"{}")
PREFIX = prefix_of(SEED, REQUEST)


def test_an_id_says_where_in_which_stream() -> None:
    assert EventId.parse(PREFIX + b".37,0.2.abcdefgh") == EventId(
        SEED, REQUEST, (37, 0), 2, False, b"i\xb7\x1dy\xf8!"
    )
    assert EventId.parse(PREFIX + b".1.end.abcdefgh").ended


def test_a_request_is_its_route_every_byte_of_its_body_and_its_owner() -> None:
    asked: list[Any] = [
        ("/", b"{}"),
        ("/", b"{ }"),
        ("/x", b"{}"),
        ("/", b"{}", "ann/"),
        ("/", b"{}", "/ann"),
        ("/", b"{}", "", b"{}"),
    ]
    assert len({request_hash(*one) for one in asked}) == 6


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"37",
        PREFIX,
        PREFIX + b".37.0.abcdefg",
        PREFIX + b".37.0.abcdefghi",
        PREFIX + b".037.0.abcdefgh",
        PREFIX + b".-1.0.abcdefgh",
        PREFIX + b".37,.0.abcdefgh",
        PREFIX + b".12345678.0.abcdefgh",
        PREFIX + b".37.END.abcdefgh",
        PREFIX + b".37.0.abcdefgh\n",
        b" " + PREFIX + b".37.0.abcdefgh",
        PREFIX[1:] + b".37.0.abcdefgh",
        PREFIX + ".٣.0.abcdefgh".encode(),
        PREFIX + b".1" + b",1" * MOST_CHOICES + b".0.abcdefgh",
        PREFIX + b".1" * MOST_CHARACTERS,
        b"\xff\x00",
    ],
)
def test_what_is_no_id_is_refused(text: bytes) -> None:
    with pytest.raises(ValidationError, match="Last-Event-ID must be the id of an event"):
        EventId.parse(text)


def test_the_longest_id_is_short_enough_for_a_header() -> None:
    counts = b",".join([b"9999999"] * MOST_CHOICES)
    longest = b"%b.%b.9999999.abcdefgh" % (PREFIX, counts)
    assert len(longest) <= MOST_CHARACTERS
    assert EventId.parse(longest).counts == (9999999,) * MOST_CHOICES
