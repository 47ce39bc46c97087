"""A closed terminal, and somebody who sends SIGHUP."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

from tgi_async.upgrade.terminal import Terminal

CHILD = """
import os, signal, sys
from tgi_async.upgrade.terminal import Terminal
os.close(os.open(os.ttyname(0), os.O_RDWR))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGHUP])
terminal = Terminal()
print(terminal.had, terminal.is_gone, flush=True)
signal.sigwait([signal.SIGHUP])
print(terminal.is_gone, flush=True)
"""


def test_a_terminal_is_gone_when_the_signal_comes() -> None:
    terminal, end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", CHILD],
        stdin=end,
        stdout=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )
    os.close(end)
    assert process.stdout is not None
    with process.stdout as lines:
        assert lines.readline() == "True False\n"
        os.close(terminal)
        assert lines.readline() == "True\n"
    assert process.wait(20) == 0


def test_what_has_no_terminal_loses_none() -> None:
    assert not Terminal(had=False).is_gone
