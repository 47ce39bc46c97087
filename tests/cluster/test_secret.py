from __future__ import annotations

import os
from pathlib import Path

import pytest
import zmq

from tgi_async.cluster.secret import LEAST, MOST, Keys, keys_of, read_secret
from tgi_async.errors import StartError

SECRET = b"correct horse battery staple"


def test_the_secret_is_in_a_file_or_a_variable(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"\n  " + SECRET + b"\r\n")
    assert read_secret(str(file), {}) == SECRET
    assert read_secret(None, {"CLUSTER_SECRET": f" {SECRET.decode()}\n"}) == SECRET
    assert read_secret(str(file), {"CLUSTER_SECRET": ""}) == SECRET


def test_a_secret_may_be_any_bytes(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_bytes(bytes(range(128, 160)))
    assert read_secret(str(file), {}) == bytes(range(128, 160))
    variable = os.fsdecode(bytes(range(128, 160)))
    assert read_secret(None, {"CLUSTER_SECRET": variable}) == bytes(range(128, 160))


def test_a_secret_is_given_once() -> None:
    with pytest.raises(StartError, match=r"^Both --cluster-secret-file and .* CLUSTER_SECRET were"):
        read_secret("/x", {"CLUSTER_SECRET": "x" * 40})
    for environment in ({}, {"CLUSTER_SECRET": ""}):
        with pytest.raises(StartError, match=r"need a secret .*`openssl rand -hex 32`"):
            read_secret(None, environment)


@pytest.mark.parametrize("n", [0, LEAST - 1, MOST + 1])
def test_a_secret_has_a_length(tmp_path: Path, n: int) -> None:
    file = tmp_path / "secret"
    file.write_bytes(b"x" * n)
    with pytest.raises(StartError, match=rf"^The cluster secret in {file} must be at .* `openssl"):
        read_secret(str(file), {})


def test_a_secret_that_is_only_space_is_too_short() -> None:
    with pytest.raises(StartError, match=r"^The environment variable CLUSTER_.* Given: 0\."):
        read_secret(None, {"CLUSTER_SECRET": " " * 40})


def test_no_more_is_read_than_a_secret_has() -> None:
    with pytest.raises(StartError, match=r"^The cluster secret in /dev/zero must be at most 4096"):
        read_secret("/dev/zero", {})


@pytest.mark.parametrize("name", ["absent", "", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(StartError, match=r"^--cluster-secret-file cannot be read: .*openssl"):
        read_secret(str(tmp_path / name), {})


def test_messages_do_not_tell_the_secret() -> None:
    with pytest.raises(StartError) as caught:
        read_secret(None, {"CLUSTER_SECRET": "hunter2"})
    assert "hunter2" not in str(caught.value)


def test_keys_are_always_the_same() -> None:
    # A new version of the server must find those of the others, so this must never change.
    assert keys_of(SECRET) == Keys(
        b"P>1uLIz5n3swkYyA@Z<4U$*=6n:/kY*?-O-xxVMI",
        b"IBFrRSCPCK0krSEcaF$&P@AsSpIJZ826lRaMR:{M",
        b"Cqk*f7IfaVfZux$}7f-SILjr&fVT?!JRq.+)v}yb",
        b"E^PjF-8X[kw1}UR0!Fr/nl+5+zuaP6UQ2KT6z?yx",
    )


def test_leader_and_members_have_different_keys_and_other_secrets_others() -> None:
    keys, others = keys_of(SECRET), keys_of(SECRET + b"s")
    assert len({*keys, *others}) == 8
    assert zmq.curve_public(keys.leader_secret) == keys.leader_public
    assert zmq.curve_public(keys.member_secret) == keys.member_public
