"""Stopping: live requests end first, and no process is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.integration.server import Server, stream
from tests.integration.waiting import until

pytestmark = [pytest.mark.model, pytest.mark.full]

WANTED = ("Once upon a time", {"max_new_tokens": 30, "ignore_eos": True})


async def until_gone(pid: int) -> None:
    async def gone() -> bool:
        return not os.path.exists(f"/proc/{pid}")  # noqa: ASYNC240

    await until(gone)


async def test_sigterm_lets_live_requests_end(model_folder: Path, tmp_path: Path) -> None:
    with Server.running(tmp_path / "log") as server:
        worker = server.worker_pid()
        async with server.client() as client:
            reply = await stream(client, *WANTED, on_token=server.terminate)

        assert len(reply.tokens) == 30
        assert server.wait() == 0
        await until_gone(worker)
        assert "Traceback" not in server.log


async def test_a_killed_router_takes_its_worker_along(model_folder: Path, tmp_path: Path) -> None:
    with Server.running(tmp_path / "log", ends_with=-signal.SIGKILL) as server:
        worker = server.worker_pid()
        os.kill(server.pid, signal.SIGKILL)
        await until_gone(worker)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
async def test_no_process_is_left_whatever_ends_the_server(
    model_folder: Path, tmp_path: Path, number: signal.Signals
) -> None:
    status = -number if number == signal.SIGKILL else 0
    with Server.running(tmp_path / "log", "--standby", ends_with=status) as server:

        async def loaded() -> bool:
            return "a standby worker is loaded" in server.log

        await until(loaded)
        pids = children(server.pid)
        # What forks workers, one that serves, and one that stands by.
        assert len(pids) >= 3
        os.kill(server.pid, number)
        for pid in pids:
            await until_gone(pid)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [*map(int, text.split())]
