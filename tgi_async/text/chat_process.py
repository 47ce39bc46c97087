"""The process that renders chat templates: a line of JSON in, a line of JSON out.

A line has the arguments of `Renderer.render`, or `endings` to ask for those of the templates.

A template is an untrusted program, run on untrusted text, and some templates take time that
grows with the square of the number of messages; a huge power, or a text repeated a billion times,
is one step of a template.
"""

from __future__ import annotations

import json
import sys
from typing import Any, BinaryIO

from tgi_async.errors import ServerError, TemplateError
from tgi_async.subprocess_pool.child import answer_lines, limit_memory, processor_time
from tgi_async.text.chat_renderer import Renderer

MEMORY = 1 << 30
"""The limit of address space, in bytes."""
MAX_CHARACTERS = 1 << 25
"""Most characters of a rendered prompt."""
MAX_ENDING = 1000
"""Most characters of what a template writes behind an answer, and of what it writes within a
turn."""


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer until `requests` ends. The first line has `templates`, `special_tokens`, `seconds`."""
    start = json.loads(requests.readline())
    seconds: float = start["seconds"]
    with processor_time(seconds):
        renderer = Renderer(start["templates"], start["special_tokens"])
    answer_lines(
        requests,
        replies,
        lambda line: json.dumps(_answer(renderer, line)).encode(),
        lambda line: seconds,
    )


def _answer(renderer: Renderer, line: bytes) -> dict[str, Any]:
    job = json.loads(line)
    try:
        if "endings" in job:
            found = renderer.endings()
            return {"endings": [[text[:MAX_ENDING] for text in pair] for pair in found]}
        text = renderer.render(**job)
        if len(text) > MAX_CHARACTERS:
            raise TemplateError(f"the prompt is longer than {MAX_CHARACTERS} characters")
    except ServerError as error:
        return {"error": type(error).__name__, "message": str(error).removeprefix(error.prefix)}
    except (MemoryError, RecursionError) as error:
        return {"error": "TemplateError", "message": f"{type(error).__name__} while rendering"}
    return {"text": text}


if __name__ == "__main__":
    limit_memory(MEMORY)
    with open(sys.stdin.fileno(), "rb", buffering=1 << 20, closefd=False) as requests:
        serve(requests, sys.stdout.buffer)
