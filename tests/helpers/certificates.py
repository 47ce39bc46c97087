"""Certificates for tests, made by the openssl program."""

from __future__ import annotations

import shutil
import ssl
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest


class Pair(NamedTuple):
    """A certificate that signs itself, and its key, as paths of PEM files."""

    certificate: str
    key: str

    def client(self) -> ssl.SSLContext:
        """What a client that trusts it uses."""
        return ssl.create_default_context(cafile=self.certificate)


def pair(folder: Path, name: str = "localhost", *, password: str = "") -> Pair:
    """Make a certificate for localhost and 127.0.0.1 whose subject is `name`."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl program to make a certificate with")
    found = Pair(str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-days", "2"]
    names = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    lock = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    files = ["-keyout", found.key, "-out", found.certificate]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *names, *lock, *files], check=True, capture_output=True
    )
    return found
