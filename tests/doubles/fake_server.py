"""The whole server over a fake worker, as a process of its own: a mock for tests.

`python -m tests.doubles.fake_server [flags]` is `tgi-async serve [flags]`, but for the worker,
the process that prepares images, and the preparation of the model, which is the Python code in the
environment variable FAKE_PREPARE. MOVE_SECONDS are `listener.MOVE_SECONDS` and `HURRY_SECONDS`.
What would block its event loop raises, unless WATCHED is empty.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from tests.api.tiny_tokenizer import tiny_inner
from tests.doubles import image_process
from tests.doubles.fake_engine_run import DEADLINE, ROOT, alive
from tests.doubles.fake_worker import COMMAND, VARIABLE, Behaviour
from tests.helpers.never_blocked import never_blocked

PREPARED = {"path": "", "model_id": "fake/model", "revision": None}
MOVE = "MOVE_SECONDS"
WATCHED = "WATCHED"
READY = re.compile(r"ready in [\d.]+ s on (https?)://[^ ]+:(\d+)")


class FakeServer:
    """A server in another process, and what it wrote to stderr."""

    def __init__(
        self,
        tmp_path: Path,
        behaviour: Behaviour,
        *flags: str,
        prepare: str = "",
        terminal: int | None = None,
        watched: bool = True,
        move_seconds: float = 0.5,
    ) -> None:
        self.behaviour = behaviour
        self.verify: ssl.SSLContext | bool = True
        """What clients check its certificate with, if it has one."""
        behaviour.journal = str(tmp_path / "journal")
        self._log = tmp_path / "log"
        self.temporary = tmp_path / "t"
        self.temporary.mkdir()
        (tmp_path / "tokenizer.json").write_text(tiny_inner().to_str())
        environment = {
            WATCHED: "yes" if watched else "",
            MOVE: str(move_seconds),
            VARIABLE: behaviour.environment(),
            "TMPDIR": str(self.temporary),
            "FAKE_PREPARE": prepare or f"print({json.dumps(PREPARED | {'path': str(tmp_path)})!r})",
        }
        inherited = {name: value for name, value in os.environ.items() if name != "HOSTNAME"}
        fixed = ("--hostname", "127.0.0.1", "--port", "0")
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.doubles.fake_server", *fixed, *flags],
                cwd=ROOT,
                stderr=log,
                stdin=terminal,
                start_new_session=terminal is not None,
                preexec_fn=None if terminal is None else _be_controlled,
                env=inherited | environment,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def worker_pids(self) -> list[int]:
        journal = Path(self.behaviour.journal)
        lines = journal.read_text().splitlines() if journal.exists() else []
        return [json.loads(line)["pid"] for line in lines]

    def until_logged(self, pattern: str | re.Pattern[str]) -> re.Match[str]:
        """The first place of the log that `pattern` matches, waiting for it to be written."""
        deadline = 2000
        while not (found := re.search(pattern, self.log)) and deadline:
            assert self.process.poll() is None, self.log
            deadline -= 1
            signal.sigtimedwait([], DEADLINE / 2000)
        assert found, self.log
        return found

    @property
    def url(self) -> str:
        scheme, port = self.until_logged(READY).groups()
        return f"{scheme}://127.0.0.1:{port}"

    @contextmanager
    def stream(self, n: int, inputs: str = "Hi") -> Iterator[Iterator[dict[str, Any]]]:
        """The events of a streamed generation, the first of which has come."""
        import httpx  # here, for the server itself needs none

        body = {"inputs": inputs, "parameters": {"max_new_tokens": n}}
        with (
            httpx.Client(base_url=self.url, timeout=DEADLINE, verify=self.verify) as client,
            client.stream("POST", "/generate_stream", json=body) as response,
        ):
            lines = (line for line in response.iter_lines() if line.startswith("data:"))
            events = (json.loads(line.removeprefix("data:")) for line in lines)
            next(events)
            yield events

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def ended(self) -> int:
        """Its exit status, once it has ended and left nothing behind, not even a traceback."""
        status = self.process.wait(DEADLINE)
        assert "Traceback" not in self.log, self.log
        assert [pid for pid in self.worker_pids if alive(pid)] == []
        assert list(self.temporary.iterdir()) == []
        return status


def _be_controlled() -> None:
    """Have the terminal at stdin control this session."""
    os.close(os.open(os.ttyname(0), os.O_RDWR))


def main() -> int:
    from tgi_async import cli, launcher, listener, serving

    if move := os.environ.get(MOVE):
        listener.MOVE_SECONDS = listener.HURRY_SECONDS = float(move)

    prepare = (sys.executable, "-c", os.environ["FAKE_PREPARE"])
    commands = serving.Commands(prepare, COMMAND, image_process.COMMAND)
    launcher.serve = functools.partial(launcher.serve, commands=commands)
    with never_blocked() if os.environ.get(WATCHED, "yes") else nullcontext():
        return cli.main(["serve", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
