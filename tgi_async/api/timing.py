"""The `x-*` headers with a request's times, in TGI's units."""

from __future__ import annotations

import time
from collections.abc import Sequence

from tgi_async.api.encoding import HeaderList
from tgi_async.api.request_context import RequestContext
from tgi_async.generation import Drafts, GenerationRequest, Timings


def stream_headers(compute_type: str, n_characters: int) -> HeaderList:
    """Return the headers that are known when a stream begins. Characters are those of the
    prompts."""
    return [
        (b"x-compute-type", compute_type.encode()),
        (b"x-compute-characters", str(n_characters).encode()),
    ]


def reply_headers(
    context: RequestContext,
    compute_type: str,
    n_characters: int,
    requests: Sequence[GenerationRequest],
    timings: Sequence[Timings],
    n_generated: int,
    drafts: Drafts | None = None,
) -> HeaderList:
    """Return the headers that are known at the end: `x-compute-time` in seconds, others in
    milliseconds.

    Where there are several prompts, queue and inference time are sums over them. `drafts` None:
    there is no speculation, and nothing to report of it.
    """
    total = time.monotonic() - context.started
    inference = sum(timing.inference for timing in timings)
    counts = {
        b"x-prompt-tokens": sum(len(request.prompt) for request in requests),
        b"x-generated-tokens": n_generated,
    }
    if drafts is not None:
        counts[b"x-accepted-drafts"] = drafts.accepted
        counts[b"x-rejected-drafts"] = drafts.rejected
    seconds = {
        b"x-total-time": total,
        b"x-validation-time": context.validation_seconds,
        b"x-queue-time": sum(timing.queued for timing in timings),
        b"x-inference-time": inference,
        b"x-time-per-token": inference / max(n_generated, 1),
    }
    return [
        *stream_headers(compute_type, n_characters),
        (b"x-compute-time", f"{total:.6f}".encode()),
        *((name, str(count).encode()) for name, count in counts.items()),
        *((name, str(int(value * 1000)).encode()) for name, value in seconds.items()),
    ]
