"""The messages between the router and the process that forks its workers.

Each is one packet of JSON on a socket that only these two have.
"""

from __future__ import annotations

import msgspec
from msgspec import Struct

MAX_PACKET_BYTES = 1 << 16


class Packet(Struct, frozen=True, forbid_unknown_fields=True, tag_field="type"):
    """Common settings of every packet."""


class Imported(Packet, frozen=True, tag="imported"):
    """Workers can be forked from now on."""

    seconds: float
    """What the imports took."""


class Fork(Packet, frozen=True, tag="fork"):
    """Fork a worker that runs with these arguments."""

    arguments: list[str]


class Forked(Packet, frozen=True, tag="forked"):
    """It is a child of the router now."""

    pid: int


class NotForked(Packet, frozen=True, tag="not_forked"):
    """There is no such worker, and the reason."""

    message: str


ToRouter = Imported | Forked | NotForked


def encode(packet: Fork | ToRouter) -> bytes:
    """Return the packet's bytes."""
    return msgspec.json.encode(packet)


def decode_request(packet: bytes) -> Fork:
    """Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(packet, type=Fork)


def decode_answer(packet: bytes) -> ToRouter:
    """Raises msgspec.DecodeError for anything else."""
    return msgspec.json.decode(packet, type=ToRouter)
