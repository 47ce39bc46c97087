"""Print the dependencies in pyproject.toml: `requirements.py [EXTRA ...]`.

An image installs them before the code, so that a change of the code does not install them anew.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

BESIDES = ("otel",)
"""Extras that every image has: TGI's image can send spans."""


def requirements(pyproject: str, extras: list[str]) -> Iterator[str]:
    """Yield what the server, these extras and a build of its wheel need."""
    read = tomllib.loads(pyproject)
    yield from read["build-system"]["requires"]
    yield from read["project"]["dependencies"]
    for extra in (*BESIDES, *extras):
        yield from read["project"]["optional-dependencies"][extra]


if __name__ == "__main__":
    print(*requirements(Path("pyproject.toml").read_text(), sys.argv[1:]), sep="\n")
