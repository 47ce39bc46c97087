"""What a started server is made of."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.server import Server

pytestmark = pytest.mark.model

MOST_ROUTER_BYTES = 250_000_000


def proportional_bytes(pid: int) -> int:
    """Memory of a process, what it shares counted by its share (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the kernel does not tell the PSS")


def libraries(pid: int) -> str:
    return Path(f"/proc/{pid}/maps").read_text()


def test_the_router_is_small_and_has_no_torch(default_server: Server, report: list[str]) -> None:
    router, worker = default_server.pid, default_server.worker_pid()
    used = proportional_bytes(router)
    report.append(
        f"start: ready in {default_server.start_seconds:.1f} s on a warm cache; router "
        f"{used / 1e6:.0f} MB, worker {proportional_bytes(worker) / 1e6:.0f} MB (PSS)"
    )

    assert "libtorch" in libraries(worker)
    assert "libtorch" not in libraries(router)
    assert used < MOST_ROUTER_BYTES


def test_the_log_shows_the_phases_with_their_times(default_server: Server) -> None:
    for phase in ("loading weights", "warming up", "limits: ", "ready in "):
        assert phase in default_server.log
    assert f"http://127.0.0.1:{default_server.port}" in default_server.log
