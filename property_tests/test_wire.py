"""The wire carries every message unchanged, and answers any other bytes with a WireError."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import msgpack
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import inspect

from tgi_async.wire.codec import VERSION, Codec, WireError, to_router_codec, to_worker_codec
from tgi_async.wire.messages import ToRouter, ToWorker


def values(of: inspect.Type) -> st.SearchStrategy[Any]:
    """Every value that the schema allows, up to a few items a list."""
    match of:
        case inspect.BoolType():
            return st.booleans()
        case inspect.IntType():
            least = -(2**63) if of.ge is None else of.ge
            most = 2**64 - 1 if of.le is None else of.le
            return st.integers(least, most if of.lt is None else of.lt - 1)
        case inspect.FloatType():
            return st.floats(
                of.ge if of.gt is None else of.gt,
                of.le if of.lt is None else of.lt,
                allow_nan=False,
                exclude_min=of.gt is not None,
                exclude_max=of.lt is not None,
            )
        case inspect.StrType():
            return st.text(max_size=3)
        case inspect.LiteralType():
            return st.sampled_from(of.values)
        case inspect.NoneType():
            return st.none()
        case inspect.ListType():
            return st.lists(values(of.item_type), min_size=of.min_length or 0, max_size=3)
        case inspect.BytesType():
            return st.binary(min_size=of.min_length or 0, max_size=of.max_length)
        case inspect.UnionType():
            return st.one_of(*map(values, of.types))
        case inspect.StructType():
            return st.builds(of.cls, **{one.name: values(one.type) for one in of.fields})
    raise NotImplementedError(f"the schema has a {of}")


for_workers = values(inspect.type_info(ToWorker))
for_router = values(inspect.type_info(ToRouter))

plain: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(),
    lambda inner: (
        st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=20,
)


@given(for_workers)
def test_what_a_worker_is_reported_arrives_as_it_was(message: ToWorker) -> None:
    wire = to_worker_codec()
    assert wire.decode(wire.encode(message)) == message
    assert wire.decode(memoryview(wire.encode(message))) == message


@given(for_router)
def test_what_the_router_is_reported_arrives_as_it_was(message: ToRouter) -> None:
    wire = to_router_codec()
    assert wire.decode(wire.encode(message)) == message


@given(st.one_of(for_workers, for_router))
def test_another_library_reads_a_frame_as_the_same_values(message: ToWorker | ToRouter) -> None:
    frame = (to_worker_codec() if isinstance(message, ToWorker) else to_router_codec()).encode(
        message  # type: ignore[arg-type]
    )
    assert frame[0] == VERSION
    assert msgpack.unpackb(frame[1:]) == msgspec.to_builtins(message, builtin_types=(bytes,))


@given(for_router)
def test_a_frame_that_another_library_wrote_is_read(message: ToRouter) -> None:
    frame = bytes([VERSION]) + msgpack.packb(msgspec.to_builtins(message, builtin_types=(bytes,)))
    assert to_router_codec().decode(frame) == message


@given(for_workers, for_router)
def test_a_frame_of_the_other_direction_is_refused(there: ToWorker, back: ToRouter) -> None:
    with pytest.raises(WireError):
        to_router_codec().decode(to_worker_codec().encode(there))
    with pytest.raises(WireError):
        to_worker_codec().decode(to_router_codec().encode(back))


@given(st.binary(max_size=20))
def test_text_that_is_not_utf_8_is_refused(text: bytes) -> None:
    frame = bytes((VERSION,)) + msgspec.msgpack.encode(["refused", "?" * (len(text) + 1)])
    with pytest.raises(WireError):
        to_router_codec().decode(frame[: -len(text) - 1] + b"\xff" + text)


@given(for_workers, st.data())
def test_a_truncated_frame_is_refused(message: ToWorker, data: st.DataObject) -> None:
    frame = to_worker_codec().encode(message)
    length = data.draw(st.integers(0, len(frame) - 1))
    with pytest.raises(WireError):
        to_worker_codec().decode(frame[:length])


@given(for_router, st.binary(min_size=1, max_size=8))
def test_a_frame_with_something_behind_it_is_refused(message: ToRouter, rest: bytes) -> None:
    with pytest.raises(WireError):
        to_router_codec().decode(to_router_codec().encode(message) + rest)


@given(for_workers, st.integers(0, 255).filter(lambda version: version != VERSION))
def test_a_frame_of_another_version_is_refused(message: ToWorker, version: int) -> None:
    frame = to_worker_codec().encode(message)
    with pytest.raises(WireError, match="version"):
        to_worker_codec().decode(bytes((version,)) + frame[1:])


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_wire_error(garbage: bytes) -> None:
    for wire in (to_worker_codec(), to_router_codec()):
        for frame in (garbage, bytes((VERSION,)) + garbage):
            with suppress(WireError):
                wire.decode(frame)


@given(plain)
def test_any_value_is_a_message_or_a_wire_error(value: Any) -> None:
    frame = bytes((VERSION,)) + msgspec.msgpack.encode(value)
    for wire in (to_worker_codec(), to_router_codec()):
        with pytest.raises(WireError):
            wire.decode(frame)


@given(for_router, st.data())
def test_a_damaged_frame_is_a_message_or_a_wire_error(
    message: ToRouter, data: st.DataObject
) -> None:
    frame = bytearray(to_router_codec().encode(message))
    for _ in range(data.draw(st.integers(1, 3))):
        frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    with suppress(WireError):
        to_router_codec().decode(bytes(frame))


@given(for_workers)
def test_a_frame_over_the_size_cap_is_refused_on_both_sides(message: ToWorker) -> None:
    frame = to_worker_codec().encode(message)
    fits = Codec(type(message), len(frame))
    assert fits.decode(fits.encode(message)) == message
    small = Codec(type(message), len(frame) - 1)
    with pytest.raises(WireError, match="exceeds"):
        small.encode(message)
    with pytest.raises(WireError, match="exceeds"):
        small.decode(frame)
