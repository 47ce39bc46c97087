from __future__ import annotations

import msgspec
import pytest

from tgi_async.wire.codec import VERSION, Codec, WireError, to_router_codec, to_worker_codec
from tgi_async.wire.messages import PromptLogprobs, Refused, Run, Step, StepDone, Stop, TopToken

STEP = Step(3, [1], [], [], [Run(0, 1)])


def frame_of(value: object) -> bytes:
    return bytes((VERSION,)) + msgspec.msgpack.encode(value)


def test_a_message_arrives_as_it_was_sent() -> None:
    wire = to_worker_codec()
    assert wire.decode(wire.encode(STEP)) == STEP
    assert wire.decode(wire.encode(Stop())) == Stop()


def test_a_frame_can_be_decoded_where_it_lies() -> None:
    wire = to_worker_codec()
    assert wire.decode(memoryview(wire.encode(STEP))) == STEP


def test_a_frame_begins_with_the_version_and_is_an_array_that_begins_with_its_tag() -> None:
    frame = to_worker_codec().encode(STEP)
    assert frame[0] == VERSION
    assert msgspec.msgpack.decode(frame[1:]) == ["step", 3, [1], [], [], [[0, 1]]]


@pytest.mark.parametrize("frame", [b"", bytes((VERSION + 1,)), b"\x00\x91\xa4stop"])
def test_another_version_is_refused_by_name(frame: bytes) -> None:
    with pytest.raises(WireError, match=f"expected wire version {VERSION}"):
        to_worker_codec().decode(frame)


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        ["unheard of"],
        ["stop", 1],
        {"type": "stop"},
        ["step", 1, [], [], []],
        ["step", "1", [], [], [], []],
        ["step", -1, [], [], [], []],
        ["step", 2**31, [], [], [], []],
        ["step", 1, [], [], [], [[0, 0]]],
        ["step", 1, [0.5], [], [], []],
        msgspec.msgpack.Ext(5, b"anything"),
        ["step", 1, msgspec.msgpack.Ext(5, b"anything"), [], [], []],
    ],
)
def test_what_is_not_of_the_schema_is_refused(value: object) -> None:
    with pytest.raises(WireError):
        to_worker_codec().decode(frame_of(value))


def test_each_direction_has_its_own_messages() -> None:
    done = StepDone(3, [], [], [], 0.0, 0.0)
    with pytest.raises(WireError):
        to_worker_codec().decode(to_router_codec().encode(done))
    with pytest.raises(WireError):
        to_router_codec().decode(to_worker_codec().encode(STEP))


def test_the_likeliest_tokens_of_a_prompt_arrive_as_they_were_sent() -> None:
    wire = to_router_codec()
    scored = PromptLogprobs(0, 1, [-0.5, -3.0], [[TopToken(7, -0.5)], [TopToken(2**31 - 1, 0.0)]])
    done = StepDone(3, [], [scored], [], 0.0, 0.0)
    assert wire.decode(wire.encode(done)) == done


def test_text_that_is_not_utf_8_is_refused() -> None:
    frame = to_router_codec().encode(Refused("?"))
    with pytest.raises(WireError, match=r"(?i)utf-8"):
        to_router_codec().decode(frame[:-1] + b"\xff")


def test_a_frame_over_the_cap_is_neither_sent_nor_read() -> None:
    wire = to_router_codec()
    frame = wire.encode(Refused("much too long"))
    small = Codec(Refused, 10)
    with pytest.raises(WireError, match="exceeds 10"):
        small.encode(Refused("much too long"))
    with pytest.raises(WireError, match="exceeds 10"):
        small.decode(frame)
