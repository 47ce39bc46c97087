"""Images that are built here, and containers of them, by podman.

Nothing is pulled where a base can be made of Debian's packages. Building uses pip's configuration
of this machine, which is mounted and gets into no layer.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[2]
BASE = "localhost/tgi-async-test:base"
IMAGE = "localhost/tgi-async-test:cpu"
BASE_PACKAGES = "python3,python3-venv,ca-certificates,curl"
CERTIFICATES = "/run/host-certificates.crt"
PIP_OPTIONS = ("index-url", "extra-index-url", "find-links", "constraint", "cert")
START_SECONDS = 120.0
ULIMITS = 'default_ulimits = ["nofile=20000:20000", "nproc=1000:1000"]'
"""Below what any user may set, as raising them needs a capability."""


class Podman:
    """podman with the options that it needs here, and with `folder` for files of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if shutil.which("podman") is None:
            pytest.skip("podman is not installed")
        self._configuration = folder / "containers.conf"
        self._configuration.write_text(f"[containers]\n{ULIMITS}\n")
        # crun refuses a machine that has both versions of control groups; runc does not.
        self._command = ["podman", *(["--runtime", "runc"] if shutil.which("runc") else [])]

    def call(
        self, *arguments: str, check: bool = True, timeout: float = 1800
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*self._command, *arguments],
            env=os.environ | {"CONTAINERS_CONF": str(self._configuration)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        assert not check or done.returncode == 0, f"podman {arguments}: {done.stdout}{done.stderr}"
        return done

    def program(self) -> str:
        """Return the path of a program that is podman with these options."""
        path = self.folder / "podman"
        words = shlex.join(["env", f"CONTAINERS_CONF={self._configuration}", *self._command])
        path.write_text(f'#!/bin/sh\nexec {words} "$@"\n')
        path.chmod(0o755)
        return str(path)

    def container(self, name: str, port: int) -> Container:
        """Return a container that another program has started."""
        return Container(self, name, port, time.monotonic())

    def has(self, image: str) -> bool:
        return self.call("image", "exists", image, check=False).returncode == 0

    def make_base(self) -> None:
        """Make the image that others begin with, or skip the test."""
        if not self.has(BASE):
            if shutil.which("mmdebstrap") is None:
                pytest.skip("no base for the image: mmdebstrap is not installed")
            archive = self.folder / "base.tar"
            include = f"--include={BASE_PACKAGES}"
            command = ["mmdebstrap", "--variant=minbase", include, "bookworm", str(archive)]
            made = subprocess.run(command, capture_output=True, text=True)
            if made.returncode:
                pytest.skip(f"no base for the image: {made.stderr[-300:]}")
            self.call("import", str(archive), BASE)
            archive.unlink()
        tried = self.call("run", "--rm", "--pull=never", BASE, "true", check=False)
        if tried.returncode:
            pytest.skip(f"podman runs no containers here: {tried.stderr[-300:]}")

    def build(self, context: Path, tag: str = IMAGE, **arguments: str) -> float:
        """Build the target `cpu` with these build arguments. Return the seconds that took."""
        began = time.monotonic()
        self.call(
            *("build", "--pull=never", "--format", "docker", "--network", "host"),
            *("--ulimit", "nofile=20000:20000", "--target", "cpu", "--tag", tag),
            *("--build-arg", f"BASE={BASE}", *_pip_here(self.folder)),
            *(word for item in arguments.items() for word in ("--build-arg", "=".join(item))),
            *("--file", str(context / "docker" / "Dockerfile"), str(context)),
        )
        return time.monotonic() - began

    def size(self, image: str = IMAGE) -> int:
        """Return the bytes of an image, unpacked."""
        return int(json.loads(self.call("image", "inspect", image).stdout)[0]["Size"])

    @contextmanager
    def running(
        self, *options: str, port: int = 80, arguments: Sequence[str] = (), image: str = IMAGE
    ) -> Iterator[Container]:
        """Run a container whose server listens on `port`, and remove it in the end."""
        name = f"tgi-async-test-{uuid.uuid4().hex[:8]}"
        began = time.monotonic()
        self.call(
            *("run", "--detach", "--pull=never", "--name", name),
            *(() if "none" in options else ("--publish", f"127.0.0.1::{port}")),
            *(*options, image, *arguments),
        )
        try:
            yield Container(self, name, port, began)
        finally:
            self.call("rm", "--force", "--time", "0", name, check=False)


class Container:
    """A container that runs, and what it says."""

    def __init__(self, podman: Podman, name: str, port: int, began: float) -> None:
        self._podman, self.name, self._port, self.began = podman, name, port, began

    def url(self) -> str:
        published = self._podman.call("port", self.name, f"{self._port}/tcp").stdout
        return f"http://{published.split()[0]}"

    @property
    def log(self) -> str:
        done = self._podman.call("logs", self.name)
        return done.stdout + done.stderr

    def execute(self, *command: str) -> subprocess.CompletedProcess[str]:
        return self._podman.call("exec", self.name, *command, check=False)

    def wait_until_ready(self, route: str = "/health") -> str:
        """Return the URL of the server once the route says 200."""
        url = self.url()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self.state()["Status"] == "running":
            # To ask podman takes longer than to ask the server.
            for _ in range(20):
                try:
                    if httpx.get(url + route).status_code == 200:
                        return url
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise AssertionError(f"{route} did not say 200: {self.state()}\n{self.log}")

    def state(self) -> dict[str, object]:
        found: list[dict[str, dict[str, object]]] = json.loads(
            self._podman.call("inspect", self.name).stdout
        )
        return found[0]["State"]

    def stop(self, seconds: int = 60) -> float:
        """Send SIGTERM, and after so many seconds SIGKILL. Return the seconds until it ended."""
        began = time.monotonic()
        self._podman.call("stop", "--time", str(seconds), self.name)
        return time.monotonic() - began


def _pip_here(folder: Path) -> Iterator[str]:
    """Yield options that let pip in a build find packages as it does here."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    )
    found: dict[str, list[str]] = {}
    for key, text in re.findall(r"^\S*?\.([\w-]+)='(.*)'$", listed.stdout, re.MULTILINE):
        if key in PIP_OPTIONS:
            found.setdefault(key, []).extend(x for x in text.split() if x not in found.get(key, []))
    lines = ["[global]"]
    mounted: set[str] = set()
    for key, values in found.items():
        values = [value for value in values if not value.startswith("file:")]
        for path in values:
            if path.startswith("/") and os.path.exists(path):
                mounted.add(f"{path}:{CERTIFICATES if key == 'cert' else path}:ro")
        if values:
            lines.append(f"{key} = " + " ".join(values if key != "cert" else [CERTIFICATES]))
    (folder / "pip.conf").write_text("\n".join(lines) + "\n")
    for mount in (f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *sorted(mounted)):
        yield from ("--volume", mount)
    if "find-links" in found or "index-url" in found:
        # There may be no other index in reach, and torch where the others are.
        yield from ("--build-arg", "TORCH_INDEX=")
