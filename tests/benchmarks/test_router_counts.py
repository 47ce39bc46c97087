"""What the router does for a token, in counts that every machine agrees on.

The limits lie a little above what was counted. Below them is welcome: lower the limit then. Above
them, something was added to the path of every token.
"""

from __future__ import annotations

import pytest
import uvloop

from benchmarks.router import Route
from benchmarks.router_counts import Counts, Mode, count
from tests.api.tiny_tokenizer import tiny_tokenizer

N_STEPS = 64


def counted(mode: Mode, name: str = "generate", *, resume_window: int = 0) -> Counts:
    tokenizer = tiny_tokenizer()
    tokens = tokenizer.encode("as plain as can be")
    route = Route.named(name, 1000)
    return uvloop.run(
        count(tokenizer, tokens, route, n_steps=N_STEPS, mode=mode, resume_window=resume_window)
    )


@pytest.mark.parametrize(("name", "most_calls"), [("generate", 66), ("completions", 73)])
def test_a_token_is_one_event_and_one_write(name: str, most_calls: int) -> None:
    counts = counted("single", name)
    assert counts.events == counts.writes == 1.0
    assert counts.calls < most_calls


@pytest.mark.parametrize(("name", "most_calls"), [("generate", 46), ("completions", 42)])
def test_a_router_that_is_behind_writes_once_for_several_tokens(name: str, most_calls: int) -> None:
    counts = counted("router behind", name)
    # It lets everybody write after 16 steps at the latest.
    assert counts.writes == pytest.approx(1 / 16, abs=1e-3)
    assert counts.calls < most_calls


def test_a_client_that_is_behind_gets_all_it_missed_in_one_write() -> None:
    counts = counted("client behind")
    # The one that it did not take, and the one with all the rest.
    assert counts.writes == pytest.approx(2 / N_STEPS, abs=1e-3)
    assert counts.events == 1.0
    assert counts.calls < 55


def test_the_events_of_tgi_stay_one_for_each_token() -> None:
    assert counted("router behind", "generate").events == 1.0


def test_a_token_takes_few_bytes_on_the_wire() -> None:
    # 3 for a row to run, 18 for its token with the log-probability, both in lists that may be
    # longer, and the frames around them.
    assert counted("single").wire_bytes < 24


def test_a_token_leaves_little_behind() -> None:
    # Its id, its text, and the blocks of the cache's keys. Python keeps small ids and letters.
    assert counted("single").blocks < 1.0


@pytest.mark.parametrize(
    ("mode", "name", "most_calls", "most_blocks"),
    [("single", "generate", 88, 1.5), ("router behind", "completions", 47, 0.5)],
)
def test_an_id_takes_few_calls_more(
    mode: Mode, name: str, most_calls: int, most_blocks: float
) -> None:
    counts = counted(mode, name, resume_window=30)
    assert counts.calls < most_calls
    # An event is kept for who comes back.
    assert counts.blocks < most_blocks
