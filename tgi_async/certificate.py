"""The server's certificate for TLS, read again whenever its files change.

Kubernetes and certificate managers replace files of a running server. Connections that exist keep
the certificate they began with; new ones get the one of now.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import NoReturn

from tgi_async.errors import StartError
from tgi_async.followed_files import FollowedFiles

LEAST_VERSION = ssl.TLSVersion.TLSv1_2
REASONS = {
    "KEY_VALUES_MISMATCH": "the key is another certificate's",
    "BAD_DECRYPT": "the password in SSL_KEYFILE_PASSWORD is not the key's",
    "NO_START_LINE": "there is no PEM block of that kind in a file",
    "PEM_LIB": "a file is not valid PEM",
    "EE_KEY_TOO_SMALL": "the key is too short to be safe",
}
"""What OpenSSL's reasons mean here."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the certificate is, and which ones clients must show.

    `certificate` has the server's and those between it and its authority, in PEM; `key` may be the
    same file. `authorities` are those of clients' certificates.
    """

    certificate: str
    key: str
    password: str | None = None
    authorities: str | None = None
    clients: ssl.VerifyMode = ssl.CERT_NONE

    def load(self) -> ssl.SSLContext:
        """Return a context for new connections. Raises StartError where a file cannot be used."""
        for flag, path in self._given():
            try:
                with open(path, "rb"):
                    pass
            except OSError as error:
                raise StartError(f"{flag}: cannot read {path}: {error.strerror}.") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = LEAST_VERSION
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(self.certificate, self.key, self._password)
        except (ssl.SSLError, ValueError) as error:
            raise StartError(
                f"--ssl-certfile and --ssl-keyfile cannot be used: {_reason(error)}. Given: "
                f"{self.certificate} and {self.key}."
            ) from error
        if self.authorities is not None:
            try:
                context.load_verify_locations(self.authorities)
            except ssl.SSLError as error:
                raise StartError(
                    f"--ssl-ca-certs cannot be used: {_reason(error)}. Given: {self.authorities}."
                ) from error
        context.verify_mode = self.clients
        return context

    @property
    def paths(self) -> list[str]:
        return [path for _, path in self._given()]

    def _given(self) -> list[tuple[str, str]]:
        found = [("--ssl-certfile", self.certificate), ("--ssl-keyfile", self.key)]
        if self.authorities is not None:
            found.append(("--ssl-ca-certs", self.authorities))
        return found

    def _password(self) -> str:
        # Without this, OpenSSL would ask at the terminal.
        if self.password is None:
            raise StartError(
                f"The key in {self.key} is encrypted. Set its password in the environment variable "
                "SSL_KEYFILE_PASSWORD."
            )
        return self.password


class Certificate:
    """What new connections are encrypted with: `context`. Raises StartError as `load` does."""

    def __init__(self, files: CertificateFiles) -> None:
        self._followed = FollowedFiles(
            files.paths,
            files.load,
            name="the certificate",
            then="new connections get the new one",
        )

    @property
    def context(self) -> ssl.SSLContext:
        return self._followed.current

    async def follow(self) -> NoReturn:
        """Replace `context` after each change of the files; what cannot be used is logged."""
        await self._followed.follow()


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None) or str(error)
    return REASONS.get(reason, reason)
