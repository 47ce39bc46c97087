"""A cluster of Ray on this machine, with Serve, out of a virtual environment of its own."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import time
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import yaml

from tests.doubles.fake_engine_run import ROOT

REQUIREMENTS = Path(__file__).with_name("ray-requirements.txt")
CACHE = ROOT / ".cache" / "ray"
INSTALL_SECONDS = 600.0
DEADLINE = 120.0
DRAINING_SECONDS = 2


def environment() -> Path:
    """The folder of the virtual environment, made at the first time. Besides Ray it has what this
    process has."""
    key = REQUIREMENTS.read_bytes() + sys.version.encode()
    folder = CACHE / hashlib.sha256(key).hexdigest()[:12]
    if not (folder / ".done").exists():
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, symlinks=True)
        pip = (sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"))
        install = (*pip, "install", "--quiet", "--no-compile", "-r", str(REQUIREMENTS))
        done = subprocess.run(install, capture_output=True, text=True, timeout=INSTALL_SECONDS)
        assert done.returncode == 0, done.stderr
        (folder / ".done").touch()
    paths = sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})
    ours = sysconfig.get_paths()["purelib"]
    Path(paths["purelib"], "zz-tgi-async.pth").write_text(f"{ROOT}\n{ours}\n")
    return folder


def free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(n)]
        return [one.getsockname()[1] for one in sockets]


class ReplicaState(NamedTuple):
    """A replica as Serve and its HAProxy know it."""

    id: str
    state: str
    pid: int
    port: int
    """Zero where HAProxy sends nothing to it."""


class Cluster:
    """One node. `url` is where Serve is reached, and `dashboard` what its commands ask."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self._bin = environment() / "bin"
        self._folder = folder
        # Sockets lie below it, whose names may have 107 bytes.
        self._short = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))
        head, dashboard, self.port, stats, metrics, fallback = free_ports(6)
        self._head, self._dashboard_port = head, dashboard
        self.url = f"http://127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{dashboard}"
        self._haproxy = folder / "haproxy"
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHON"))}
        self.variables = kept | {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_SECONDS),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(self._haproxy / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(self._short / "h" / "admin.sock"),
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(self._short / "h" / "metrics.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(self._haproxy),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(self._haproxy / "server-state"),
            "RAY_ADDRESS": f"127.0.0.1:{head}",
            "RAY_DASHBOARD_ADDRESS": self.dashboard,
            # No file of its own in the home, and nothing sent.
            "RAY_AUTH_MODE": "disabled",
            "RAY_USAGE_STATS_ENABLED": "0",
            **variables,
        }
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> str:
        return (self._folder / "ray.log").read_text()

    def start(self, *, n_cpus: int = 8, n_gpus: int = 0) -> None:
        """Start the node. Its GPUs need not exist."""
        command = (
            *("ray", "start", "--head", "--block", "--disable-usage-stats"),
            *("--node-ip-address", "127.0.0.1", "--port", str(self._head)),
            *("--dashboard-port", str(self._dashboard_port), "--temp-dir", str(self._short)),
            *("--num-cpus", str(n_cpus), "--num-gpus", str(n_gpus)),
            *("--object-store-memory", str(100_000_000)),
        )
        with (self._folder / "ray.log").open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env={k: v for k, v in self.variables.items() if k != "RAY_ADDRESS"},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

        def up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self.log
            return self._ask() is not None

        until(up, "the dashboard does not answer")

    def stop(self) -> None:
        """End the node, and whatever it started."""
        if self._process is not None:
            self.serve("shutdown", "-y", check=False)
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(DEADLINE / 2)
            for pid in processes_in(str(self._short)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait(DEADLINE)
        shutil.rmtree(self._short, ignore_errors=True)

    def serve(self, *arguments: str, check: bool = True, cwd: Path | None = None) -> str:
        """What a command of Serve prints."""
        done = subprocess.run(
            ("serve", *arguments),
            env=self.variables,
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
        )
        printed = done.stdout + done.stderr
        assert not check or done.returncode == 0, printed
        return printed

    def deploy(self, config: dict[str, Any]) -> None:
        """`serve deploy`, without waiting for what it does."""
        file = self._folder / "config.yaml"
        http = {"host": "127.0.0.1", "port": self.port}
        file.write_text(yaml.safe_dump({"http_options": http, **config}))
        self.serve("deploy", str(file))

    def application(self, name: str) -> dict[str, Any]:
        """What Serve says of an application; empty where it knows of none."""
        found: dict[str, Any] = (self._ask() or {}).get("applications", {}).get(name, {})
        return found

    def replicas(self, name: str) -> list[ReplicaState]:
        """The replicas of an application's deployment `server`, stopping ones included."""
        deployments = self.application(name).get("deployments", {})
        found = deployments.get("server", {}).get("replicas", [])
        text = "".join(one.read_text() for one in self._haproxy.rglob("haproxy.cfg"))
        states = []
        for one in found:
            at = re.search(rf"-{one['replica_id']} 127.0.0.1:(\d+)", text)
            port = int(at[1]) if at else 0
            states.append(ReplicaState(one["replica_id"], one["state"], one.get("pid") or 0, port))
        return states

    def until_running(self, name: str, n_replicas: int) -> list[ReplicaState]:
        """Exactly so many replicas, once they run and HAProxy knows of them."""

        def running() -> bool:
            found = self.application(name)
            assert found.get("status") != "DEPLOY_FAILED", found
            states = self.replicas(name)
            return len(states) == n_replicas and all(
                one.state == "RUNNING" and one.port for one in states
            )

        until(running, lambda: f"{self.application(name)}")
        return self.replicas(name)

    def _ask(self) -> dict[str, Any] | None:
        try:
            reply = httpx.get(f"{self.dashboard}/api/serve/applications/", timeout=DEADLINE)
        except httpx.TransportError:
            return None
        found: dict[str, Any] | None = reply.json() if reply.status_code == 200 else None
        return found


def until(condition: Any, what: Any) -> None:
    """Return once `condition` holds; fail with `what` if it does not in time."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, what() if callable(what) else what
        time.sleep(0.2)


def processes_in(text: str) -> Iterator[int]:
    """The processes whose command line or environment has this text."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):
                said = (folder / "cmdline").read_bytes() + (folder / "environ").read_bytes()
                if text.encode() in said and int(folder.name) != os.getpid():
                    yield int(folder.name)
