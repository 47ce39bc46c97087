"""Server-sent events."""

from __future__ import annotations

from tgi_async.api.encoding import DONE, encode_events


def test_an_event_is_one_line_of_json() -> None:
    assert encode_events([{"a": "\n한"}]) == 'data: {"a":"\\n한"}\n\n'.encode()


def test_events_are_one_piece_and_the_last_one_is_no_json() -> None:
    assert encode_events(["a", DONE]) == b'data: "a"\n\ndata: [DONE]\n\n'


def test_no_events_are_an_empty_piece() -> None:
    assert encode_events([]) == b""
    assert encode_events(()) == b""
