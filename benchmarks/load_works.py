"""Works for a server: how many requests, how many at a time, how long."""

from __future__ import annotations

import random
from dataclasses import dataclass

NOUNS = """
time year people way day man thing woman life child world school state family student group
country problem hand part place case week company system program question work government number
night point home water room mother area money story fact month lot right study book eye job word
business issue side kind head house service friend father power hour game line end member law car
city community name president team minute idea body information back parent face others level
office door health person art war history party result change morning reason research girl guy
moment air teacher force education foot boy age policy music market sense nation plan college
interest death experience effect use class control field development role effort rate heart drug
show leader light voice wife police mind price report decision son view relationship town road
arm difference value building action season society tax director position player record paper
space ground form event official matter center couple site project activity star table need court
"""
WORDS = NOUNS.split()
"""With a space before it, each is one token in most vocabularies of English."""


@dataclass(frozen=True, slots=True)
class Work:
    """`requests` prompts, `concurrency` at a time, `output_tokens` each; lengths in words."""

    requests: int
    concurrency: int
    output_tokens: int
    prompt_words: int = 32
    shared_words: int = 0
    """Words at the start of every prompt of a round that are the same."""
    beside: int = 0
    """Streams that decode from before the first of the prompts to the end of the last."""

    def prompts(self, seed: str) -> list[str]:
        draw = random.Random(seed)
        shared = draw.choices(WORDS, k=self.shared_words)
        return [
            " ".join(shared + draw.choices(WORDS, k=self.prompt_words))
            for _ in range(self.requests)
        ]

    def prompts_beside(self, seed: str) -> list[str]:
        """Return the prompts of the streams beside, which are short."""
        draw = random.Random(f"{seed}/beside")
        return [" ".join(draw.choices(WORDS, k=32)) for _ in range(self.beside)]


WORKS = {
    "stream1": Work(requests=4, concurrency=1, output_tokens=128),
    "streams16": Work(requests=48, concurrency=16, output_tokens=128),
    "streams64": Work(requests=128, concurrency=64, output_tokens=64),
    "prefill": Work(requests=12, concurrency=4, output_tokens=1, prompt_words=1200),
    "prefix": Work(requests=24, concurrency=4, output_tokens=16, shared_words=1500),
    "one-token": Work(requests=256, concurrency=32, output_tokens=1),
    "beside": Work(requests=8, concurrency=2, output_tokens=1, prompt_words=1200, beside=4),
}

MAX_STREAMS = 4096


def sweep_work(streams: int) -> Work:
    """Return a point of a sweep: two requests a stream, so that the last of them join a running
    batch."""
    return Work(requests=max(4, 2 * streams), concurrency=streams, output_tokens=64)


def describe(work: Work) -> str:
    prefix = f"{work.shared_words} shared words + " if work.shared_words else ""
    beside = f", beside {work.beside} streams, whose ITL it is" if work.beside else ""
    return (
        f"{work.requests} requests, {work.concurrency} at a time, prompts of {prefix}"
        f"{work.prompt_words} words, {work.output_tokens} tokens out{beside}"
    )
