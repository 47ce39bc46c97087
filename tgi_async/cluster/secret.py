"""The secret that all nodes of a model share, and the keys that are made of it.

Whoever has the secret has all keys: nodes trust each other with the model and with what clients
send, so there is no node to keep another one's key from.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import zmq
from zmq.utils import z85

from tgi_async.errors import StartError

VARIABLE = "CLUSTER_SECRET"
LEAST, MOST = 16, 4096
"""Bytes of a secret."""
MAKE_ONE = "Make one by `openssl rand -hex 32`, and give the same to all nodes."

SALT = b"tgi-async cluster keys 1"
"""The same on all nodes, which have nothing in common but the secret."""
COST, BLOCK, PARALLEL = 2**14, 8, 1
"""Of scrypt: 16 MiB and some 40 ms, on each start. So a guess at a secret that somebody thought up
costs as much, instead of well under a microsecond; one of 32 random bytes needs none of it."""


class Keys(NamedTuple):
    """Key pairs of Curve25519, in Z85."""

    leader_public: bytes
    leader_secret: bytes
    member_public: bytes
    """That of all nodes but the leader."""
    member_secret: bytes


def read_secret(file: str | None, environment: Mapping[str, str]) -> bytes:
    """Return the secret out of `file` or CLUSTER_SECRET, without whitespace around it.

    Raises StartError for none, two, one that is too short, and a file that cannot be read.
    """
    given = environment.get(VARIABLE)
    if file is not None and given:
        raise StartError(
            f"Both --cluster-secret-file and the environment variable {VARIABLE} were given. Give "
            "only one of them."
        )
    if file is not None:
        source = f"The cluster secret in {file}"
        try:
            with Path(file).open("rb") as opened:
                secret = opened.read(MOST + 1)
        except (OSError, ValueError) as error:
            raise StartError(f"--cluster-secret-file cannot be read: {error}. {MAKE_ONE}") from None
    elif given:
        source = f"The environment variable {VARIABLE}"
        secret = os.fsencode(given)
    else:
        raise StartError(
            "Several nodes need a secret by which they know each other, in --cluster-secret-file "
            f"or the environment variable {VARIABLE}. {MAKE_ONE}"
        )
    if len(secret) > MOST:
        raise StartError(f"{source} must be at most {MOST} bytes long. {MAKE_ONE}")
    secret = secret.strip()
    if len(secret) < LEAST:
        raise StartError(
            f"{source} must be at least {LEAST} bytes long. Given: {len(secret)}. {MAKE_ONE}"
        )
    return secret


def keys_of(secret: bytes) -> Keys:
    """Return the keys of both sides, the same for the same secret."""
    made = hashlib.scrypt(secret, salt=SALT, n=COST, r=BLOCK, p=PARALLEL, maxmem=2**26, dklen=64)
    leader, member = z85.encode(made[:32]), z85.encode(made[32:])
    return Keys(zmq.curve_public(leader), leader, zmq.curve_public(member), member)
