"""The file for sbatch, run by bash with commands in the place of SLURM's and of the server."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.kubernetes import DEPLOY
from tests.deploy.test_chart import settings_of
from tgi_async.cluster.topology import DEFAULT_PORT, topology

SCRIPT = DEPLOY / "slurm" / "tgi-async.sbatch"
SRUN = """#!/bin/bash
echo "$@" >"$PLACE/srun"
while [[ $1 == --* ]]; do
  [[ $1 == --ntasks=* ]] && tasks=${1#*=}
  shift
done
for ((i = 0; i < tasks; i++)); do SLURM_PROCID=$i "$@" & done
wait
"""
SERVER = """#!/bin/bash
# A leader that stops in order when told, and members of which each fails at its first start.
rank=$3
echo "$@" >>"$PLACE/rank$rank"
if ((rank > 0)) && [[ $(wc -l <"$PLACE/rank$rank") -eq 1 ]]; then exit 1; fi
trap '[[ $rank != 0 ]] || touch "$PLACE/stopped"; echo TERM >>"$PLACE/signals$rank"' TERM
[[ -e $PLACE/fails && $rank == 0 ]] && exit 7
touch "$PLACE/up$rank"
until [[ -e $PLACE/stopped ]]; do /bin/sleep 0.02; done
"""
SLEEP = "#!/bin/sh\nexec /bin/sleep 0.01\n"
SECONDS = 60.0


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    for name, text in (("srun", SRUN), ("tgi-async", SERVER), ("sleep", SLEEP)):
        file = tmp_path / "bin" / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        file.chmod(0o755)
    yield tmp_path
    (tmp_path / "stopped").touch()


def started(place: Path, nodes: int, *flags: str) -> subprocess.Popen[bytes]:
    variables = {
        "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
        "HOME": str(place),
        "PLACE": str(place),
        "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURMD_NODENAME": "gpu007",
    }
    return subprocess.Popen(["bash", str(SCRIPT), *flags], env=variables)


def wait_for(*files: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while not all(file.exists() for file in files):
        assert time.monotonic() < deadline, files
        time.sleep(0.01)


def test_a_signal_stops_the_leader_which_stops_the_others(place: Path) -> None:
    job = started(place, 3, "--model-id", "owner/name", "--port", "8080")
    wait_for(*(place / f"up{rank}" for rank in range(3)))
    job.send_signal(signal.SIGTERM)
    assert job.wait(SECONDS) == 0
    assert (place / "signals0").read_text() == "TERM\n"
    assert not (place / "signals1").exists()

    given = {rank: (place / f"rank{rank}").read_text().splitlines() for rank in range(3)}
    # A member that failed was started again, with the same.
    assert [len(set(lines)) for lines in given.values()] == [1, 1, 1]
    assert [len(lines) for lines in given.values()] == [1, 2, 2]
    host = subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    secret = place / ".tgi-async-secret"
    for rank, lines in given.items():
        assert lines[0] == (
            f"serve --node-rank {rank} --nnodes 3 --master-addr {host} "
            f"--cluster-secret-file {secret} --model-id owner/name --port 8080"
        )
        settings = settings_of(lines[0].split()[1:])
        assert topology(settings, {}) == (3, rank, host, DEFAULT_PORT, "--nnodes")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(secret.read_text().strip()) == 44
    asked = (place / "srun").read_text().split()
    assert {"--nodes=2", "--ntasks=2", "--ntasks-per-node=1", "--exclude=gpu007"} <= set(asked)


def test_a_leader_that_fails_is_the_jobs_status(place: Path) -> None:
    (place / "fails").touch()
    assert started(place, 1).wait(SECONDS) == 7
    assert not (place / "srun").exists()


def test_a_secret_that_is_there_is_kept(place: Path) -> None:
    (place / ".tgi-async-secret").write_text("mine\n")
    (place / "fails").touch()
    started(place, 1).wait(SECONDS)
    assert (place / ".tgi-async-secret").read_text() == "mine\n"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say() -> None:
    done = subprocess.run(["shellcheck", SCRIPT], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
