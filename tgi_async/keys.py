"""API keys of several clients, with their shares and limits, from a file.

The file may have keys as they are, or their SHA-256, so that it need not be a secret. It is read
again when it changes: a request that runs goes on, whatever becomes of its key.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, NoReturn

import msgspec
import yaml
from msgspec import Meta, Struct

from tgi_async.errors import StartError
from tgi_async.followed_files import FollowedFiles
from tgi_async.scheduler.weights import MOST_WEIGHT

FLAG = "--api-keys-file"
MOST_BYTES = 1 << 20
MOST_KEYS = 4096

_SECRET = os.urandom(32)
_UNSENDABLE = re.compile(r"^[ \t]|[ \t]\Z|[\x00-\x08\x0a-\x1f\x7f]")
_UNKNOWN_FIELD = re.compile(
    r"unknown field `(?![a-z_]{1,24}`( - at `[^`]*`)?\Z).*?`(?P<place> - at `\$[^`]*`)?\Z",
    re.DOTALL,
)
"""Of a name that may be a key, where the two were mixed up."""

Count = Annotated[int, Meta(ge=1, le=2**31 - 1)]


class ApiKey(Struct, frozen=True, kw_only=True):
    """A client's key. Limits that are None are the server's own."""

    name: str
    """In the log, in metrics and for fairness; not secret."""
    weight: int = 1
    """Its share of a busy server beside others: twice as much service for 2."""
    max_concurrent_requests: int | None = None
    """Texts that run and wait for it at once."""
    max_tokens_per_minute: int | None = None
    """Of prompts and answers together."""
    max_total_tokens: int | None = None
    """Of one text, prompt and answer."""


class _Entry(Struct, forbid_unknown_fields=True, kw_only=True):
    """A key in the file."""

    name: Annotated[str, Meta(pattern=r"^[\w.-]{1,64}\Z")]
    key: Annotated[str, Meta(min_length=1, max_length=1024)] | None = None
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-fA-F]{64}\Z")] | None = None
    weight: Annotated[int, Meta(ge=1, le=MOST_WEIGHT)] = 1
    max_concurrent_requests: Count | None = None
    max_tokens_per_minute: Count | None = None
    max_total_tokens: Count | None = None

    @property
    def digest(self) -> bytes:
        if self.key is not None:
            return _digest(self.key.encode())
        return bytes.fromhex(self.sha256 or "")

    @property
    def api_key(self) -> ApiKey:
        return ApiKey(
            name=self.name,
            weight=self.weight,
            max_concurrent_requests=self.max_concurrent_requests,
            max_tokens_per_minute=self.max_tokens_per_minute,
            max_total_tokens=self.max_total_tokens,
        )


class _File(Struct, forbid_unknown_fields=True):
    keys: Annotated[list[_Entry], Meta(max_length=MOST_KEYS)]


class _Twice(Exception):
    """A name is twice in one object, the second time in this line."""


class KeyFile:
    """The keys of a file, as it is now. Raises StartError for a file that cannot be used."""

    def __init__(self, path: str) -> None:
        self._followed: FollowedFiles[Mapping[bytes, ApiKey]] = FollowedFiles(
            [path], lambda: load(path), name=FLAG, then="new requests need the new keys"
        )

    async def follow(self) -> NoReturn:
        """Read the file again after each change; one that cannot be used is logged."""
        await self._followed.follow()

    def find(self, given: bytes) -> ApiKey | None:
        """Return the key that a client sent; None for one that is not there.

        How long it takes says nothing of the keys: they are looked up by a keyed hash of the
        SHA-256, and nobody outside can tell which of two come close to each other.
        """
        return self._followed.current.get(_blinded(_digest(given)))


def load(path: str) -> dict[bytes, ApiKey]:
    """Return the keys of a file by their blinded SHA-256. Raises StartError."""
    try:
        with open(path, "rb") as file:
            raw = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise StartError(f"{FLAG}: cannot read {path}: {error.strerror}.") from error
    if len(raw) > MOST_BYTES:
        raise StartError(f"{FLAG}: {path} is longer than {MOST_BYTES} bytes.")
    try:
        given = _read(raw)
    except RecursionError as error:
        raise StartError(f"{FLAG}: {path}: {error}.") from None
    except _Twice as error:
        raise StartError(
            f"{FLAG}: {path}: what is named in {error} is there for the second time. Give it once."
        ) from None
    except Exception as error:  # the constructors of dates and numbers raise of many kinds
        # Without the line itself, which may have a key.
        found_at = re.search(r"line \d+, column \d+", str(error))
        where = f" in {found_at[0]}" if found_at else ""
        raise StartError(f"{FLAG}: {path} is neither YAML nor JSON{where}.") from None
    try:
        found = msgspec.convert(given, _File)
    except (msgspec.ValidationError, RecursionError) as error:
        reason = _UNKNOWN_FIELD.sub(r"unknown field\g<place>", str(error))
        raise StartError(f"{FLAG}: {path}: {reason}.") from None
    keys: dict[bytes, ApiKey] = {}
    names: set[str] = set()
    for entry in found.keys:
        if (entry.key is None) == (entry.sha256 is None):
            raise StartError(f"{FLAG}: {path}: {entry.name} needs either `key` or `sha256`.")
        if entry.key is not None and _UNSENDABLE.search(entry.key):
            raise StartError(
                f"{FLAG}: {path}: the `key` of {entry.name} begins or ends with a space, or has a "
                "line break or another control character, which no client can send. Leave it out."
            )
        try:
            place = _blinded(entry.digest)
        except UnicodeEncodeError:
            raise StartError(
                f"{FLAG}: {path}: the `key` of {entry.name} has half of a character (a surrogate), "
                "which no client can send. Write the character itself, or `sha256`."
            ) from None
        if entry.name in names or place in keys:
            raise StartError(f"{FLAG}: {path}: {entry.name} or its key is there twice.")
        names.add(entry.name)
        keys[place] = entry.api_key
    return keys


def _read(raw: bytes) -> Any:
    """Return what YAML, or JSON, says. Raises _Twice: YAML itself takes the last of two."""
    loader = yaml.SafeLoader(raw)
    document = loader.get_single_node()
    if document is None:
        return None
    todo, seen = [document], set()
    for node in todo:
        if id(node) in seen or isinstance(node, yaml.ScalarNode):
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            todo += node.value
            continue
        names: set[str] = set()
        for name, value in node.value:
            todo.append(value)
            if isinstance(name, yaml.ScalarNode):
                if name.value in names:
                    raise _Twice(f"line {name.start_mark.line + 1}")
                names.add(name.value)
    return loader.construct_document(document)


def _blinded(digest: bytes) -> bytes:
    return hmac.digest(_SECRET, digest, "sha256")


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
