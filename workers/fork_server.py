"""`python -m workers.fork_server`: a process that has the imports done, and forks workers.

Importing torch and transformers takes most of a worker's start. This process does it once, and a
worker that is forked from it begins where a started one is after seconds, with the same memory as
long as neither writes to it.

**A forked worker is the router's child.** It is forked twice, and as the process between ends, the
router, which asks the kernel for it (PR_SET_CHILD_SUBREAPER), becomes its parent: so the router
waits for it, sees how it ended and has it killed at its own end, as if it had started it itself,
and the end of this process is not that of its workers.

**Only what survives a fork is there before it.** Threads do not, those of OpenMP, oneDNN and our
own kernels included, so nothing is computed here; neither does the state of a GPU's driver, so
nothing here looks at one. Both are checked, and where a library does it anyhow, this process
refuses to fork: workers are started without it then.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tgi_async.wire import forks
from workers import command_line
from workers.build_cache import use_scratch
from workers.parent_death import killed_by_kernel

DRIVERS = "/dev/nvidia"
"""What descriptors of a GPU's driver are open on."""
THREADS = "/proc/self/task"


def main() -> None:
    """Serve forks of `python -m workers`."""
    from workers.__main__ import main as work

    serve(import_all, work, "workers")


def serve(prepare: Callable[[], None], work: Callable[[Sequence[str]], None], module: str) -> None:
    """Do the imports by `prepare`, then fork what the router asks for until it is gone. In what is
    forked, do the `work` of `module` with the arguments that it is given."""
    parser = argparse.ArgumentParser(prog="python -m workers.fork_server", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True, help="where the sockets are")
    parser.add_argument("--control", type=int, required=True, help="socket to the router")
    parser.add_argument("--router", type=int, required=True, help="process that started this one")
    given = parser.parse_args()
    # A thread that looks for the router would not survive a fork.
    if not killed_by_kernel():
        sys.exit("workers are not forked: this system ends no process with its parent")
    if os.getppid() != given.router:
        os._exit(1)
    # The router decides when to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    # The router passes on who asks what all processes are doing.
    faulthandler.register(signal.SIGUSR1)
    use_scratch(given.folder)
    with socket.socket(fileno=given.control) as control:
        began = time.perf_counter()
        prepare()
        if reason := what_a_fork_would_lose():
            sys.exit(f"workers are not forked: {reason}")
        control.send(forks.encode(forks.Imported(time.perf_counter() - began)))
        arguments = _until_forked(control)
    if arguments is not None:
        # This is a worker now, and ends like one.
        started = sys.orig_argv
        command_line.show([*started[: started.index("-m") + 1], module, *arguments])
        work(arguments)


def import_all() -> None:
    """Import what every worker needs, and freeze it: a look of the garbage collector at each object
    would write to its memory, and copy it in each worker."""
    gc.disable()
    import transformers.generation
    import transformers.modeling_layers  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import workers.ranks
    import workers.worker  # noqa: F401

    # transformers makes a table of a thousand patterns when it is first asked for one.
    get_checkpoint_conversion_mapping("")
    gc.enable()
    gc.collect()
    gc.freeze()


def what_a_fork_would_lose() -> str:
    """Return what of this process would not survive a fork; "" for nothing."""
    if (n := len(os.listdir(THREADS))) > 1:
        return f"the imports began {n - 1} threads, which a fork would end"
    opened = [_target(name) for name in os.listdir("/proc/self/fd")]
    if drivers := [target for target in opened if target.startswith(DRIVERS)]:
        return f"the imports opened {drivers[0]}, which a fork would break"
    return ""


def _target(descriptor: str) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}")
    except OSError:  # that of the listing itself
        return ""


def _until_forked(control: socket.socket) -> list[str] | None:
    """Fork what the router asks for until it is gone: return None then, and a worker's arguments in
    each worker."""
    while packet := control.recv(forks.MAX_PACKET_BYTES):
        request = forks.decode_request(packet)
        try:
            pid = fork()
        except OSError as error:
            control.send(forks.encode(forks.NotForked(str(error))))
            continue
        if pid == 0:
            return request.arguments
        control.send(forks.encode(forks.Forked(pid)))
    return None


def fork() -> int:
    """Fork a process that the router is the parent of, in a session of its own. Return its id, and
    0 in it. Raises OSError."""
    told, tell = os.pipe()
    held, go = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            if os.fork():
                os._exit(0)
        except OSError as error:
            os._exit(error.errno or 1)
        # A session of its own, so that a Ctrl-C in the terminal reaches the router alone.
        os.setsid()
        os.write(tell, str(os.getpid()).encode())
        os.close(go)
        if not os.read(held, 1):
            os._exit(1)
        for descriptor in (told, tell, held):
            os.close(descriptor)
        return 0
    os.close(tell)
    os.close(held)
    try:
        # Once it is waited for, its child belongs to the router.
        _, status = os.waitpid(between, 0)
        if failed := os.waitstatus_to_exitcode(status):
            raise OSError(failed, os.strerror(failed) if failed > 0 else "the fork was killed")
        pid = int(os.read(told, 32))
        os.write(go, b"!")
        return pid
    finally:
        os.close(told)
        os.close(go)


if __name__ == "__main__":
    main()
