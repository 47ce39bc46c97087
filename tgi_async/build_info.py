"""What this server was built from: its version and, in an image, the commit and the image's label.

The image's build sets the two as variables (`docker/Dockerfile`); a Python package has neither.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from typing import NamedTuple

SHA_VARIABLE = "TGI_ASYNC_GIT_SHA"
LABEL_VARIABLE = "TGI_ASYNC_DOCKER_LABEL"


class BuildInfo(NamedTuple):
    """A build of the server."""

    version: str
    sha: str | None = None
    """The commit, as the image's build was given it."""
    docker_label: str | None = None
    """What the image calls itself, such as `sha-0123abc`."""

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of the OpenAI routes, in TGI's form."""
        return f"{self.version}-{self.docker_label or 'native'}"

    def __str__(self) -> str:
        """The version first, on its own where there is no more to say."""
        told = {"commit": self.sha, "image": self.docker_label}
        more = ", ".join(f"{name} {value}" for name, value in told.items() if value)
        return f"{self.version} ({more})" if more else self.version


def build_info(environment: Mapping[str, str] = os.environ) -> BuildInfo:
    """Return what this server was built from."""
    return BuildInfo(
        metadata.version("tgi-async"),
        environment.get(SHA_VARIABLE) or None,
        environment.get(LABEL_VARIABLE) or None,
    )
