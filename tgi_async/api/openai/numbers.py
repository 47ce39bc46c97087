"""Accept numbers that clients spell differently: `"0.7"` from a settings field, `256.0` from a
language with one number type."""

from __future__ import annotations

import re
from functools import cache
from typing import Any, Generic, TypeVar

import msgspec
from msgspec import Raw, inspect

from tgi_async.api.body import BodyRefused, JsonBody, decode_json

S = TypeVar("S", bound=msgspec.Struct)
_QUOTED = re.compile(rb'"(-?\d{1,20}(?:\.\d{1,20})?)"')
_WHOLE = re.compile(rb"(-?\d{1,20})\.0{1,20}")
_FIELDS = msgspec.json.Decoder(dict[str, Raw])


class RespelledJson(Generic[S]):
    """Decodes bodies of one type whose numbers may be spelled differently."""

    def __init__(self, body_type: type[S]) -> None:
        self.types: tuple[Any, ...] = (body_type,)
        self._type = body_type
        self._json = JsonBody(body_type)

    def decode(self, body: bytes) -> S:
        """Decode `body`, with its numbers respelled if it does not fit as it is.

        Raises:
            BodyRefused: it does not fit, or is no JSON.
        """
        try:
            return self._json.decode(body)
        except BodyRefused as refused:
            other = respelled(body, self._type) if refused.status == 422 else None
            if other is None:
                raise
        return self._json.decode(other)


def respelled(body: bytes, body_type: type[msgspec.Struct]) -> bytes | None:
    """Return the body with the usual spelling of the numbers that are fields of this type.

    None if there is nothing to change.
    """
    try:
        given = decode_json(_FIELDS, body)
    except BodyRefused:
        return None
    changed = False
    for name, is_whole in _numbers_of(body_type).items():
        if name not in given:
            continue
        text = bytes(given[name])
        if quoted := _QUOTED.fullmatch(text):
            text = quoted[1]
        if is_whole and (whole := _WHOLE.fullmatch(text)):
            text = whole[1]
        if text != bytes(given[name]):
            given[name], changed = Raw(text), True
    return msgspec.json.encode(given) if changed else None


@cache
def _numbers_of(body_type: type[msgspec.Struct]) -> dict[str, bool]:
    """Return the fields that are a number or null, and whether it is an integer."""
    found: dict[str, bool] = {}
    info = inspect.type_info(body_type)
    assert isinstance(info, inspect.StructType)
    for field in info.fields:
        kinds = _kinds(field.type) - {inspect.NoneType}
        if kinds and kinds <= {inspect.IntType, inspect.FloatType}:
            found[field.encode_name] = inspect.FloatType not in kinds
    return found


def _kinds(info: Any) -> set[type]:
    if isinstance(info, inspect.UnionType):
        return set().union(*map(_kinds, info.types))
    if isinstance(info, inspect.Metadata):
        return _kinds(info.type)
    return {type(info)}
