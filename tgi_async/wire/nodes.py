"""The messages between the leader, which is the router of node 0, and the members, the other nodes.

Both say all of what they want or have, again and again: the leader which groups of workers are to
live, a member which live and how. So no frame needs to arrive, and whoever comes back late learns
what holds now.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from tgi_async.wire.codec import Codec
from tgi_async.wire.messages import Count, Frame, Ready, Start

MOST_TEXT = 4096
MOST_NOTES = 16
MAX_FRAME_BYTES = 2**20
"""A longer one would end its connection, which is made anew."""

Text = Annotated[str, Meta(max_length=MOST_TEXT)]
Name = Annotated[str, Meta(max_length=256)]


class GroupOrder(Frame, frozen=True):
    """Have the member's ranks of this epoch, started like this; the folders of the model are the
    member's own."""

    epoch: Count
    start: Start


class Order(Frame, frozen=True, tag="order"):
    """All groups that are to live on the member."""

    leader: Name
    """Another one at each start of the leader."""
    groups: Annotated[list[GroupOrder], Meta(max_length=4)]


class Rejected(Frame, frozen=True, tag="rejected"):
    """The leader does not take this member, for this reason."""

    message: Text


class Ended(Frame, frozen=True, tag="ended"):
    """The leader ends in order, and so are its members to."""


class NodeInfo(Frame, frozen=True):
    """What a member is, all of which must suit the leader."""

    rank: Count
    """Of the node."""
    n_nodes: Count
    n_ranks: Count
    """Workers on each node."""
    version: Name
    """Of this software."""
    model: Name
    """What its files are, as `fingerprint` says."""
    host: Name


class GroupReport(Frame, frozen=True):
    """A member's ranks of an epoch."""

    epoch: Count
    seconds: float | None
    """As in `processes.Activity`, for all of them, and so are the next two."""
    read: Annotated[int, Meta(ge=0)]
    stopped: bool
    ready: Ready | None = None
    """Once they are, together."""
    refused: Text = ""
    """Why the model cannot be served, if it cannot."""
    ended: Text = ""
    """How the first one of them ended, once it has."""


class Report(Frame, frozen=True, tag="report"):
    """All groups that live on a member, for this leader; those that have ended, as long as they are
    ordered."""

    member: Name
    """Another one at each start of the member."""
    node: NodeInfo
    leader: Name = ""
    """Whose groups they are."""
    groups: tuple[GroupReport, ...] = ()
    leaves: bool = False
    """Whether this is its last report."""


ToMember = Order | Rejected | Ended


def to_member_codec() -> Codec[ToMember]:
    return Codec(ToMember, MAX_FRAME_BYTES)  # type: ignore[arg-type]


def to_leader_codec() -> Codec[Report]:
    return Codec(Report, MAX_FRAME_BYTES)
