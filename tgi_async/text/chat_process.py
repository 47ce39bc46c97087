"""The process that renders chat templates: a line of JSON in, a line of JSON out.

A template is a program by strangers, run on text by strangers, and some templates take time that
grows with the square of the number of messages. Neither a thread nor one step of a template (a huge
power, a text repeated a billion times) can be stopped from within Python, so the bounds are the
kernel's: a timer of processor time whose signal ends this process, and a limit to its memory. The
timer holds without anybody watching, also when the server is gone; and as it counts processor time,
a busy machine does not fail an honest request.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from tgi_async.errors import ServerError, TemplateError
from tgi_async.text.chat_renderer import Renderer

MEMORY = 1 << 30
"""Bytes of address space."""
MAX_CHARACTERS = 1 << 25
"""Of a rendered prompt."""


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until `requests` ends. The first line has `templates`, `special_tokens`, `seconds`."""
    start = json.loads(requests.readline())
    seconds: float = start["seconds"]
    with _timer(seconds):
        renderer = Renderer(start["templates"], start["special_tokens"])
    for line in requests:
        with _timer(seconds):
            reply = json.dumps(_answer(renderer, line)).encode()
        replies.write(reply + b"\n")
        replies.flush()


def _answer(renderer: Renderer, line: bytes) -> dict[str, Any]:
    try:
        text = renderer.render(**json.loads(line))
        if len(text) > MAX_CHARACTERS:
            raise TemplateError(f"the prompt is longer than {MAX_CHARACTERS} characters")
    except ServerError as error:
        return {"error": type(error).__name__, "message": str(error).removeprefix(error.prefix)}
    except (MemoryError, RecursionError) as error:
        return {"error": "TemplateError", "message": f"{type(error).__name__} while rendering"}
    return {"text": text}


@contextmanager
def _timer(seconds: float) -> Iterator[None]:
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _limit_memory() -> None:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    except (OSError, ValueError) as error:  # macOS has the name of this limit only
        print(f"chat templates render without a limit to memory: {error}", file=sys.stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the server's other processes may ignore it
    _limit_memory()
    with open(sys.stdin.fileno(), "rb", buffering=1 << 20, closefd=False) as requests:
        serve(requests, sys.stdout.buffer)
