"""What a server shows at SIGUSR1."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys

from tests.doubles.fake_worker import Behaviour
from tests.test_launcher import Serve, serve
from tgi_async import diagnosis

__all__ = ["serve"]  # the fixture


def test_a_server_shows_what_all_its_processes_do_and_no_text(serve: Serve) -> None:
    behaviour = Behaviour(step_seconds=0.02, n_blocks=512, max_total_tokens=512)
    server = serve(behaviour)
    with server.stream(300, "a secret prompt") as events:
        server.signal(signal.SIGUSR1)
        server.until_logged(r"x _serve \(tgi_async/engine.py:\d+\) > .*_serve_group")
        server.until_logged(r"1 of 128 rows run, 0 requests wait, 0 were preempted")
        server.until_logged(r"blocks of 4 tokens: [1-9]\d* used")
        server.until_logged(r"steps in flight: \d+ of 1 rows")
        server.until_logged(r"runs: request 1, row 0, prompt of 15 tokens \(0 cached\)")
        server.until_logged(r"client 127.0.0.1: 1 requests, charged \d+")
        (worker,) = server.worker_pids
        server.until_logged(f"passed on to process {worker}: tests.doubles.fake_worker")
        server.until_logged(r'(?s)File ".*tgi_async/cli.py".*File ".*fake_worker.py", line')
        server.signal(signal.SIGUSR1)
        server.until_logged("SIGUSR1 again within 10 s: not shown")
        assert next(events)
    assert "secret" not in server.log
    server.signal(signal.SIGTERM)
    assert server.ended() == 0


def test_a_process_that_does_not_handle_the_signal_gets_none() -> None:
    idle = "import time, signal, sys; {}; print(flush=True); time.sleep(600)"
    handled = "signal.signal(signal.SIGUSR1, lambda *_: sys.exit(3))"
    processes = [
        subprocess.Popen([sys.executable, "-c", idle.format(code)], stdout=subprocess.PIPE)
        for code in ("pass", handled)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.read(1)
        assert {process.pid for process in processes} <= set(diagnosis._below(os.getpid()))
        diagnosis.pass_on()
        assert processes[1].wait(20) == 3
        assert processes[0].poll() is None
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


async def test_tasks_that_wait_for_the_same_are_counted() -> None:
    event = asyncio.Event()

    async def inner() -> None:
        await event.wait()

    async def outer() -> None:
        await inner()

    waiting = [asyncio.create_task(outer()) for _ in range(3)]
    await asyncio.sleep(0)
    shown = diagnosis.tasks()[0]
    assert shown.startswith("3 x outer (tests/test_diagnosis.py:")
    assert " > inner (tests/test_diagnosis.py:" in shown
    assert " > wait (asyncio/locks.py:" in shown
    event.set()
    await asyncio.gather(*waiting)
