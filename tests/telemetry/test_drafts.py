"""How many drafts of each place were verified and accepted."""

from __future__ import annotations

from tgi_async.telemetry.drafts import DraftCounter
from tgi_async.wire.messages import Sampled


def test_a_place_counts_all_rows_that_had_a_draft_there() -> None:
    counter = DraftCounter("ngram", 3)
    counter.add([Sampled(0, [1]), Sampled(1, [1, 2, 3], n_computed=2, n_drafts=3)])
    counter.add([Sampled(0, [5], n_drafts=1), Sampled(1, [6, 7], n_computed=1, n_drafts=2)])
    assert "".join(counter.lines()) == (
        "# HELP tgi_async_drafts Drafts that were verified\n"
        "# TYPE tgi_async_drafts counter\n"
        'tgi_async_drafts{method="ngram",position="1"} 3\n'
        'tgi_async_drafts{method="ngram",position="2"} 2\n'
        'tgi_async_drafts{method="ngram",position="3"} 1\n'
        "# HELP tgi_async_accepted_drafts Drafts that were accepted\n"
        "# TYPE tgi_async_accepted_drafts counter\n"
        'tgi_async_accepted_drafts{method="ngram",position="1"} 2\n'
        'tgi_async_accepted_drafts{method="ngram",position="2"} 1\n'
        'tgi_async_accepted_drafts{method="ngram",position="3"} 0\n'
    )


def test_every_place_is_there_from_the_start() -> None:
    lines = "".join(DraftCounter("medusa", 2).lines())
    assert lines.count('{method="medusa",position="2"} 0\n') == 2
