from __future__ import annotations

import subprocess
import sys

import pytest

SHOWN = """
import sys
from pathlib import Path
from workers import command_line
before = Path("/proc/self/cmdline").read_bytes()
command_line.show(sys.argv[1].split())
after = Path("/proc/self/cmdline").read_bytes()
assert len(after) == len(before)
print(after.rstrip(b"\\0").replace(b"\\0", b" ").decode())
"""


@pytest.mark.parametrize("words", ["a worker", "worker " + "--long=1 " * 200])
def test_another_command_line_is_shown_as_far_as_there_is_room(words: str) -> None:
    command = [sys.executable, "-c", SHOWN, words.rstrip()]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    shown = done.stdout.rstrip("\n")
    assert len(shown) > 7
    assert words.startswith(shown)
