"""Machines of a network, played by network namespaces: each has interfaces, ports and processes of
its own, and a cable that can be pulled."""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest


def _ip(*words: str) -> None:
    subprocess.run(("ip", *words), check=True, capture_output=True)


_made = itertools.count(os.getpid() * 8)
"""Others may be made at the same time, and the kernel may take a moment to remove the last one."""


class Network:
    """So many machines and this one, on one switch."""

    def __init__(self, n: int) -> None:
        number = next(_made) % 2**14
        self._name = f"n{number:x}"
        self._prefix = f"10.{64 + number // 256}.{number % 256}"
        self._n = n

    @classmethod
    @contextmanager
    def of(cls, n: int) -> Iterator[Network]:
        """Make one. Skips the test where this user may not."""
        if os.geteuid() or not shutil.which("ip"):
            pytest.skip("network namespaces need root and ip(8)")
        made = cls(n)
        try:
            made._make()
            yield made
        finally:
            made._remove()

    def address(self, machine: int) -> str:
        return f"{self._prefix}.{machine + 1}"

    def within(self, machine: int) -> tuple[str, ...]:
        """What runs the command behind it on a machine."""
        return ("ip", "netns", "exec", f"{self._name}m{machine}")

    def pull(self, machine: int) -> None:
        """Pull its cable: nobody is told."""
        _ip("link", "set", f"{self._name}v{machine}", "down")

    def plug(self, machine: int) -> None:
        """Put its cable back."""
        _ip("link", "set", f"{self._name}v{machine}", "up")

    def _make(self) -> None:
        _ip("link", "add", self._name, "type", "bridge")
        _ip("addr", "add", f"{self._prefix}.254/24", "dev", self._name)
        _ip("link", "set", self._name, "up")
        for machine in range(self._n):
            space, cable = f"{self._name}m{machine}", f"{self._name}v{machine}"
            _ip("netns", "add", space)
            _ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            _ip("link", "set", cable, "master", self._name, "up")
            _ip("-n", space, "addr", "add", f"{self.address(machine)}/24", "dev", "eth0")
            _ip("-n", space, "link", "set", "eth0", "up")
            _ip("-n", space, "link", "set", "lo", "up")

    def _remove(self) -> None:
        for machine in range(self._n):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", f"{self._name}m{machine}")
        with suppress(subprocess.CalledProcessError):
            _ip("link", "del", self._name)
