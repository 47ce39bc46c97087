from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tgi_async.subprocess_pool.pool import ProcessEnded, ProcessPool

CHILD = """
import json, os, sys, time
from tgi_async.subprocess_pool.child import answer_lines, limit_memory
limit_memory(1 << 30)
start = json.loads(sys.stdin.buffer.readline())
def answer(line):
    job = json.loads(line)
    if "sleep" in job: time.sleep(job["sleep"])
    while "spin" in job: pass
    if "fill" in job:
        try: bytearray(job["fill"])
        except MemoryError: return b'"no memory"'
    if "score" in job: return open("/proc/self/oom_score_adj", "rb").read().strip()
    if "exit" in job: os._exit(job["exit"])
    while "kills" in job and (n := int(open(job["kills"]).read())):
        open(job["kills"], "w").write(str(n - 1))
        os.kill(os.getpid(), 9)
    return json.dumps([start, os.getpid(), job]).encode()
answer_lines(sys.stdin.buffer, sys.stdout.buffer, answer, lambda line: 0.2)
"""

Make = Callable[..., ProcessPool]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[ProcessPool] = []

    def pool(n_processes: int = 1, **settings: Any) -> ProcessPool:
        command = (sys.executable, "-c", CHILD)
        made.append(
            ProcessPool(command, b'"hello"', n_processes=n_processes, name="it", **settings)
        )
        return made[-1]

    yield pool
    for one in made:
        one.close()


def ask(pool: ProcessPool, **job: float) -> Any:
    return json.loads(pool.ask(json.dumps(job).encode()))


def test_a_line_is_answered_by_a_process_that_stays(make: Make) -> None:
    pool = make()
    first, second = ask(pool, a=1), ask(pool, b=2)
    assert (first[0], first[2], second[2]) == ("hello", {"a": 1}, {"b": 2})
    assert first[1] == second[1]


@pytest.mark.parametrize(("job", "status"), [({"spin": 1}, -signal.SIGPROF), ({"exit": 3}, 3)])
def test_one_that_ends_says_how_and_is_replaced(
    make: Make, job: dict[str, Any], status: int
) -> None:
    pool = make()
    before = ask(pool)[1]
    with pytest.raises(ProcessEnded) as ended:
        ask(pool, **job)
    assert ended.value.status == status
    assert ask(pool)[1] != before


def test_one_that_says_nothing_is_ended(make: Make) -> None:
    pool = make(patience=0.5)
    before = ask(pool)[1]
    with pytest.raises(ProcessEnded) as ended:
        ask(pool, sleep=60)
    assert ended.value.status == -signal.SIGKILL
    assert ask(pool)[1] != before


@pytest.mark.parametrize(("kills", "answered"), [(1, True), (2, False)])
def test_a_line_whose_process_somebody_kills_is_asked_once_more(
    make: Make, tmp_path: Path, kills: int, answered: bool
) -> None:
    left = tmp_path / "left"
    left.write_text(str(kills))
    line = json.dumps({"kills": str(left)}).encode()
    pool = make()
    if answered:
        assert json.loads(pool.ask(line))[0] == "hello"
        return
    with pytest.raises(ProcessEnded) as ended:
        pool.ask(line)
    assert ended.value.status == -signal.SIGKILL


def test_a_large_one_is_ended_first_where_memory_runs_out(make: Make) -> None:
    assert json.loads(make().ask(b'{"score": 1}')) == 500


@pytest.mark.parametrize(("allowed", "asked", "left"), [(2, 1, 1), (2, 3, 2)])
def test_a_limit_that_is_there_already_is_not_raised(allowed: int, asked: int, left: int) -> None:
    script = (
        "import resource\n"
        "from tgi_async.subprocess_pool.child import limit_memory\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({allowed << 30},) * 2)\n"
        f"limit_memory({asked << 30})\n"
        "print(resource.getrlimit(resource.RLIMIT_AS)[0] >> 30)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.stderr) == (str(left), "")


def test_memory_is_bounded(make: Make) -> None:
    assert json.loads(make().ask(b'{"fill": 2000000000}')) == "no memory"


def test_the_next_one_can_be_started_before_it_is_needed(make: Make) -> None:
    pool = make(n_processes=2)
    pool.prepare()
    running = [process._running for process in pool._processes]
    [started] = [one for one in running if one is not None]
    assert started.poll() is None
    assert ask(pool)[1] == started.pid


def test_one_more_than_are_asked_can_be_ready(make: Make) -> None:
    pool = make(3, one_more=True)
    ask(pool, a=1)
    running = [one for one in pool._processes if one._running is not None]
    assert len(running) == 2


def test_they_end_with_the_pool(make: Make) -> None:
    pool = make()
    ask(pool)
    [process] = pool._processes
    running = process._running
    assert running is not None
    pool.close()
    assert running.poll() is not None


def test_none_is_started_for_a_pool_that_is_closed(make: Make) -> None:
    pool = make()
    pool.close()
    with pytest.raises(ProcessEnded):
        ask(pool)
    assert [process._running for process in pool._processes] == [None]


def test_who_asks_while_it_is_closed_hears_of_its_end(make: Make) -> None:
    pool = make()
    ask(pool)
    with ThreadPoolExecutor(1) as threads:
        asked = threads.submit(ask, pool, sleep=60)
        time.sleep(0.1)
        pool.close()
        with pytest.raises(ProcessEnded):
            asked.result(10)


def test_a_process_ends_when_nobody_asks_any_more(make: Make) -> None:
    """As when the server is killed: its end of the pipe is closed."""
    pool = make()
    ask(pool)
    [process] = pool._processes
    assert process._running is not None
    assert process._running.stdin is not None
    process._running.stdin.close()
    deadline = time.monotonic() + 30
    while process._running.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process._running.poll() == 0
