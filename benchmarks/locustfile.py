"""Users who stream answers, for Locust.

    locust -f benchmarks/locustfile.py --host http://127.0.0.1:8080 --headless -u 64 -t 60s

Each asks for an answer, reads it to its end, thinks for a moment and asks again. A row of Locust's
table is a whole answer; `first token` is the time until the first event of it. An answer that is
cut short or holds an error is a failure.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from typing import Any

from locust import HttpUser, between, events, task
from locust.argument_parser import LocustArgumentParser
from locust.clients import ResponseContextManager

DONE = "[DONE]"
SUBJECTS = ("a lighthouse", "the tides", "a lost key", "bees", "an old bridge", "rain", "bread")
LENGTHS = (16, 32, 64)
TIMEOUT = (10.0, 120.0)
"""Seconds to connect, and between two pieces of an answer."""


@events.init_command_line_parser.add_listener
def _arrive_quickly(parser: LocustArgumentParser) -> None:
    """Unless `-r` is given, all are there within seconds rather than one a second."""
    parser.set_defaults(spawn_rate=16)


class BadAnswer(Exception):
    """An answer that a client cannot use, and why."""


class Streamer(HttpUser):
    """Asks one of the two streaming routes at a time, with prompts of its own."""

    wait_time = between(0.1, 1.0)

    @task
    def generate_stream(self) -> None:
        parameters = {"max_new_tokens": random.choice(LENGTHS), "details": True}
        self._stream("/generate_stream", {"inputs": self._prompt(), "parameters": parameters})

    @task
    def chat_completions(self) -> None:
        body = {
            "messages": [{"role": "user", "content": self._prompt()}],
            "max_tokens": random.choice(LENGTHS),
            "stream": True,
        }
        self._stream("/v1/chat/completions", body)

    def _prompt(self) -> str:
        return f"Tell me about {random.choice(SUBJECTS)}, story {random.randrange(10**6)}."

    def _stream(self, path: str, body: dict[str, Any]) -> None:
        began = time.perf_counter()
        with self.client.post(
            path, json=body, stream=True, catch_response=True, timeout=TIMEOUT
        ) as response:
            try:
                if response.error is not None:
                    raise BadAnswer(str(response.error))
                if response.status_code != 200:
                    raise BadAnswer(f"status {response.status_code}: {response.text[:200]}")
                self._read(path, response, began)
            except (BadAnswer, OSError) as error:
                response.failure(str(error))
            # Locust's own time ends with the head of the reply.
            response.request_meta["response_time"] = _milliseconds_since(began)

    def _read(self, path: str, response: ResponseContextManager, began: float) -> None:
        """Raises BadAnswer, and OSError where the connection breaks."""
        n_events, ended = 0, False
        for data in _events(response):
            n_events += 1
            if n_events == 1:
                self._tell_first(path, _milliseconds_since(began))
            if data == DONE:
                ended = True
                continue
            event = json.loads(data)
            if "error" in event:
                raise BadAnswer(f"an error in the stream: {data[:200]}")
            # TGI's own route ends with the whole text, and without a mark.
            ended = ended or event.get("generated_text") is not None
        if not ended:
            raise BadAnswer(f"the stream ended after {n_events} events")

    def _tell_first(self, path: str, milliseconds: float) -> None:
        self.environment.events.request.fire(
            request_type="first token",
            name=path,
            response_time=milliseconds,
            response_length=0,
            exception=None,
            context={},
        )


def _events(response: ResponseContextManager) -> Iterator[str]:
    """The data of each server-sent event, as it comes."""
    rest = b""
    for piece in response.iter_content(chunk_size=None):
        *lines, rest = (rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode()


def _milliseconds_since(began: float) -> float:
    return (time.perf_counter() - began) * 1000
