"""A server that has no room, for suites that look at what their client makes of that."""

from __future__ import annotations

import http.client
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

ROWS = 8
"""Generations that the server runs at once."""
LONG = {"prompt": "a", "n": ROWS, "max_tokens": 4000, "ignore_eos": True, "stream": True}


@contextmanager
def full_server() -> Iterator[None]:
    """Have another request run on all of the server's rows."""
    host = os.environ["TGI_URL"].removeprefix("http://")
    key = {"authorization": f"Bearer {os.environ['TGI_API_KEY']}"}
    holding = http.client.HTTPConnection(host, timeout=60)
    head = {"content-type": "application/json", **key}
    holding.request("POST", "/v1/completions", json.dumps(LONG), head)
    holding.getresponse().readline()
    try:
        yield
    finally:
        holding.close()
        while "tgi_batch_current_size 0" not in _metrics(host):
            time.sleep(0.05)


def _metrics(host: str) -> str:
    asking = http.client.HTTPConnection(host, timeout=60)
    asking.request("GET", "/metrics")
    return asking.getresponse().read().decode()
