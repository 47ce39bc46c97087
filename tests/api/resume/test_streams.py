from __future__ import annotations

import pytest

from tgi_async.api.resume import streams as streams_module
from tgi_async.api.resume.line import Line
from tgi_async.api.resume.streams import STREAM_BYTES, Key, Streams
from tgi_async.telemetry.metrics import Metrics


def key(number: int) -> Key:
    return Key("account", b"request", number)


class Stream:
    """A stream with events of 1,000 bytes."""

    def __init__(self, streams: Streams, number: int) -> None:
        self._streams = streams
        self.key = key(number)
        streams.add(self.key, self)
        streams.n_bytes += 1000
        self.ended = False

    def take_over(self, line: Line, id: bytes) -> bool:
        raise NotImplementedError

    async def end(self) -> None:
        self.ended = True
        self.drop()

    def drop(self) -> None:
        self._streams.remove(self.key, 1000)


@pytest.fixture
def streams() -> Streams:
    return Streams(10, Metrics(max_input_tokens=10, max_total_tokens=20))


def test_streams_are_found_by_who_asked_for_what(streams: Streams) -> None:
    stream = Stream(streams, 1)
    assert streams.get(key(1)) is stream
    assert streams.get(key(2)) is None
    assert streams.get(Key("another", b"request", 1)) is None
    assert streams.get(Key("account", b"another", 1)) is None
    stream.drop()
    assert streams.get(key(1)) is None
    assert streams.n_bytes == 0


def test_room_is_made_by_complete_streams_the_oldest_first(
    streams: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        Stream(streams, number)
    for number in (2, 1, 0):
        streams.mark(key(number), whole=True)
    streams.mark(key(2), whole=False)  # its client came back
    monkeypatch.setattr(streams_module, "MOST_BYTES", 3 * (STREAM_BYTES + 1000))
    streams.make_room()
    assert [streams.get(key(number)) is None for number in range(4)] == [False, True, False, False]
    monkeypatch.setattr(streams_module, "MOST_BYTES", 0)
    streams.make_room()
    assert [streams.get(key(number)) is None for number in range(4)] == [True, True, False, False]


async def test_all_end_with_the_server(streams: Streams) -> None:
    found = [Stream(streams, number) for number in range(3)]
    await streams.close()
    assert all(stream.ended for stream in found)
    assert streams.n_bytes == 0
