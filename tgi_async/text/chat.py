"""Chat templates: messages to the text of a prompt, in processes that can be ended.

The server itself never compiles or runs a template: see `tgi_async.text.chat_process`.
"""

from __future__ import annotations

import fcntl
import json
import os
import queue
import signal
import subprocess
import sys
import weakref
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

from tgi_async.errors import TemplateError, ValidationError
from tgi_async.text.chat_files import read_templates
from tgi_async.text.chat_forms import Message

COMMAND = (sys.executable, "-m", "tgi_async.text.chat_process")
VARIABLES = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "TZ")
"""Of the environment; its secrets are not a template's business."""
PIPE_BYTES = 1 << 20
"""The most that Linux gives without being asked by root: a long chat passes in few switches."""


class ChatTemplate:
    """The templates of one model. Thread-safe.

    `templates` is the source of the only one, or sources by name. `special_tokens` are variables of
    the template, by names such as `bos_token`. A template that cannot be compiled is an error of
    the requests that need it, not of the start.

    At most `n_processes` render at once; one that took more than `seconds` of processor time is
    ended, with its request alone. They are started when first needed.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        n_processes: int = 2,
        seconds: float = 2.0,
    ) -> None:
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        start = {"templates": named, "special_tokens": dict(special_tokens), "seconds": seconds}
        self._processes = [_Process(start, seconds) for _ in range(n_processes)]
        # The last one in is the first out, so that without a crowd only one is ever started.
        self._idle: queue.LifoQueue[_Process] = queue.LifoQueue()
        for process in self._processes:
            self._idle.put(process)
        self.threads = ThreadPoolExecutor(n_processes, thread_name_prefix="chat")
        """Where to call `render`: apart from the threads that tokenize, which it would hold up."""
        self._end = weakref.finalize(self, _end_all, self._processes)

    @classmethod
    def from_folder(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """The model's templates, or None if it has none.

        Raises:
            StartError: a file that may hold them cannot be read.
        """
        templates = read_templates(folder)
        return cls(templates, special_tokens) if templates else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> str:
        """The prompt for an answer to `messages`; blocks, for a bounded time.

        `variables` are further ones of the template; it must read them. See `Renderer.render` for
        the two flags: by default, an assistant's text at the end is continued.

        Raises:
            TemplateError: the template refuses these messages, cannot show them, or takes too long.
            ValidationError: `variables` has a name that is not allowed.
        """
        job = {
            "messages": list(messages),
            "tools": tools,
            "documents": documents,
            "variables": variables,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        process = self._idle.get()
        try:
            return process.render(job)
        finally:
            self._idle.put(process)

    def close(self) -> None:
        """End the processes."""
        self.threads.shutdown(wait=False, cancel_futures=True)
        self._end()


class _Process:
    """One process, started when needed and again after its end. Used by one thread at a time."""

    def __init__(self, start: Mapping[str, Any], seconds: float) -> None:
        self._start = json.dumps(start).encode() + b"\n"
        self._seconds = seconds
        self._running: subprocess.Popen[bytes] | None = None

    def render(self, job: Mapping[str, Any]) -> str:
        try:
            line = json.dumps(job).encode() + b"\n"
        except (ValueError, RecursionError) as error:  # an integer too long, or nested too deep
            raise TemplateError(f"the messages cannot be shown: {error}") from error
        reply = self._reply(line)
        if reply is None:
            raise TemplateError(self._why_it_ended())
        answer = json.loads(reply)
        if "text" in answer:
            text: str = answer["text"]
            return text
        kind = ValidationError if answer["error"] == "ValidationError" else TemplateError
        raise kind(answer["message"])

    def _reply(self, line: bytes) -> bytes | None:
        """What the process says; None if it ended instead."""
        try:
            running = self._started()
            assert running.stdin is not None
            assert running.stdout is not None
            running.stdin.write(line)
            running.stdin.flush()
            reply = running.stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return None
        return reply if reply.endswith(b"\n") else None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._running is not None and self._running.poll() is None:
            return self._running
        self.end()
        self._running = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=PIPE_BYTES,
            env={name: os.environ[name] for name in VARIABLES if name in os.environ},
            start_new_session=True,  # Ctrl-C is for the server, whose end closes their input
        )
        assert self._running.stdin is not None
        assert self._running.stdout is not None
        for pipe in (self._running.stdin, self._running.stdout):
            _widen(pipe.fileno())
        self._running.stdin.write(self._start)
        return self._running

    def _why_it_ended(self) -> str:
        assert self._running is not None
        status = self._running.wait()
        self.end()
        if status == -signal.SIGPROF:
            return (
                f"rendering took more than {self._seconds:g} seconds of processor time. "
                "Send fewer or shorter messages"
            )
        return f"rendering ended with status {status}"

    def end(self) -> None:
        """End the process, if there is one."""
        running, self._running = self._running, None
        if running is None:
            return
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):  # by what was left to write
                    pipe.close()


def _widen(pipe: int) -> None:
    if sys.platform == "linux":
        with suppress(PermissionError):  # this user has so many pipes that no more may be wide
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)


def _end_all(processes: Sequence[_Process]) -> None:
    for process in processes:
        process.end()
