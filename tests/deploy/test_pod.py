"""The chart's container as Kubernetes confines it, without Kubernetes: its user, its root, its
volumes, its arguments and variables, and the real model."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.deploy.kubernetes import ROOT, rendered
from tests.deploy.test_probes import free_port
from workers.errors import ModelUnavailable
from workers.models.embedded import find_gguf

pytestmark = [pytest.mark.full, pytest.mark.model]

START_SECONDS = 240.0
CONFINED = """
set -e
mount --make-rprivate /
mount -t tmpfs tmpfs /mnt
mkdir /mnt/upper /mnt/work /mnt/root
mount -t overlay -o lowerdir=/,upperdir=/mnt/upper,workdir=/mnt/work overlay /mnt/root
for place in {mounted}; do mount --rbind $place /mnt/root$place; done
mkdir -p /mnt/root/srv/server {places}
mount --bind {repository} /mnt/root/srv/server
chmod a+rx {parents}
for place in {places}; do mount -t tmpfs -o size=3g,gid={group},mode=2775 tmpfs $place; done
mount -o remount,ro,bind /mnt/root
cd /mnt/root
exec chroot /mnt/root env -i PATH=/usr/bin:/bin PYTHONPATH=/srv/server {variables} \\
    setpriv --reuid {user} --regid {group} --clear-groups --no-new-privs \\
    --bounding-set=-all --inh-caps=-all \\
    {python} -c 'import sys; from tgi_async.cli import main; sys.exit(main())' serve {arguments}
"""


@pytest.fixture
def pod() -> dict[str, Any]:
    found = {one["kind"]: one for one in rendered("--set", "shutdown.delaySeconds=1")}
    spec: dict[str, Any] = found["Deployment"]["spec"]["template"]["spec"]
    return spec


def mounted() -> list[str]:
    """Mounts below the root, which an overlay of it does not have."""
    lines = Path("/proc/self/mounts").read_text().splitlines()
    tops = {"/" + line.split()[1].split("/")[1] for line in lines}
    kept = [top for top in sorted(tops - {"/", "/tmp", "/mnt"}) if os.path.isdir(top)]
    return [top for top in kept if os.path.ismount(top)]


@pytest.fixture
def script(pod: dict[str, Any]) -> str:
    [server] = pod["containers"]
    variables = [f"{one['name']}={one['value']}" for one in server["env"]]
    python = Path(sys.executable)
    parents = {*python.parents, *python.resolve().parents} - {Path("/")}
    return CONFINED.format(
        mounted=" ".join(mounted()),
        places=" ".join(f"/mnt/root{one['mountPath']}" for one in server["volumeMounts"]),
        repository=shlex.quote(str(ROOT)),
        parents=" ".join(shlex.quote(f"/mnt/root{one}") for one in sorted(parents)),
        user=pod["securityContext"]["runAsUser"],
        group=pod["securityContext"]["fsGroup"],
        variables=shlex.join(variables),
        python=shlex.quote(str(python)),
        arguments=shlex.join([*server["args"], "--max-total-tokens", "512"]),
    )


@pytest.fixture
def process(script: str, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    try:
        find_gguf()
    except ModelUnavailable as unavailable:
        pytest.skip(str(unavailable))
    if os.geteuid() != 0:
        pytest.skip("only root can confine a process as a container is")
    if subprocess.run(["unshare", "-m", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]).returncode:
        pytest.skip("mounts are not permitted here")
    port = free_port()
    command = re.sub(r"--port \d+", f"--port {port}", script)
    with (tmp_path / "log").open("wb") as log:
        running = subprocess.Popen(["unshare", "-m", "sh", "-c", command], stderr=log, stdout=log)
    try:
        yield running, port
    finally:
        if running.poll() is None:
            running.kill()
            running.wait()


def test_it_serves_as_no_one_with_a_root_that_cannot_be_written(
    process: tuple[subprocess.Popen[bytes], int], pod: dict[str, Any], tmp_path: Path
) -> None:
    running, port = process
    url = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + START_SECONDS
    while True:
        assert running.poll() is None, (tmp_path / "log").read_text()
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        try:
            if httpx.get(f"{url}/health/ready").status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.2)

    status = Path(f"/proc/{running.pid}/status").read_text()
    user = pod["securityContext"]["runAsUser"]
    assert re.search(rf"^Uid:\t{user}\t{user}\t", status, re.MULTILINE)
    assert re.search(r"^CapBnd:\t0+$", status, re.MULTILINE)
    root = Path(f"/proc/{running.pid}/root")
    assert list((root / "data" / "tgi-async").iterdir())
    options = Path(f"/proc/{running.pid}/mountinfo").read_text()
    assert re.search(r" / / ro", options)

    body = {"inputs": "The sea is", "parameters": {"max_new_tokens": 5}}
    answer = httpx.post(f"{url}/generate", json=body, timeout=60)
    assert answer.status_code == 200
    assert answer.json()["generated_text"]

    running.send_signal(signal.SIGTERM)
    grace = pod["terminationGracePeriodSeconds"]
    assert running.wait(grace) == 0, (tmp_path / "log").read_text()
    # The model was converted in the cache, not in a temporary folder.
    log = (tmp_path / "log").read_text()
    assert "Traceback" not in log
    assert "from /data/tgi-async/" in log
