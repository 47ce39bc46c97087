"""What there is in a process before workers are forked from it. How it forks is in
tests/test_fork_server.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tgi_async import processes
from workers import fork_server

PROBE = """
import torch

asked = []
for name in (
    "_lazy_init", "cudart", "current_device", "device_count", "get_device_capability",
    "get_device_name", "get_device_properties", "init", "is_available", "is_bf16_supported",
    "mem_get_info", "set_device", "synchronize",
):
    setattr(torch.cuda, name, lambda *given, name=name, **named: asked.append(name) or 0)

from workers.fork_server import import_all, what_a_fork_would_lose

import_all()
assert asked == [], asked
assert what_a_fork_would_lose() == "", what_a_fork_would_lose()
torch.ones(512, 512) @ torch.ones(512, 512)
print(what_a_fork_would_lose())
"""


@pytest.mark.full
def test_the_imports_begin_no_thread_and_ask_nothing_of_a_gpu() -> None:
    variables = {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        env=processes.environment(os.environ) | variables,
        stdout=subprocess.PIPE,
        text=True,
        timeout=120,
        check=True,
    )
    # A product of matrices would, and that is noticed.
    assert done.stdout == "the imports began 1 threads, which a fork would end\n"


def test_a_driver_that_is_open_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = tmp_path / "nvidiactl"
    driver.write_text("")
    monkeypatch.setattr(fork_server, "DRIVERS", str(tmp_path))
    monkeypatch.setattr(fork_server, "THREADS", str(tmp_path))
    with driver.open():
        said = fork_server.what_a_fork_would_lose()
    assert said == f"the imports opened {driver}, which a fork would break"
