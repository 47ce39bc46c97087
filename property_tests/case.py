"""What a client and a worker know of a request, apart from what the core says of it."""

from __future__ import annotations

from typing import NamedTuple

from property_tests.bookings import Booking
from property_tests.model import has_stop_sequence, undisturbed
from tgi_async.scheduler.request import Request
from tgi_async.wire.messages import Admit, Step


class Case:
    """A request, and what its client has seen of it."""

    def __init__(self, request: Request, booking: Booking, *, stops: bool = False) -> None:
        """`stops`: its text ends with a stop sequence, which the core does not see by itself."""
        self.request = request
        self.booking = booking
        self.prompt = list(request.tokens)
        self.due = undisturbed(self.prompt, request.max_new_tokens, request.stop_ids, stops=stops)
        self.emitted: list[int] = []
        self.n_drafts = self.n_accepted = 0
        if stops:
            request.text_end = self._text_end
        self.prompt_logprobs: list[float] = []
        self.ended = False
        self.n_in_flight = 0
        """Parts of steps in flight."""
        self.admitted = False
        self.preempted = False
        """Since the workers started."""

    def _text_end(self, tokens: list[int]) -> int | None:
        for n in range(1, len(tokens) + 1):
            if has_stop_sequence(self.emitted + tokens[:n]):
                return n
        return None

    @property
    def known(self) -> list[int]:
        return self.prompt + self.emitted


class Row:
    """What the steps sent so far say about a row."""

    def __init__(self, case: Case, admit: Admit) -> None:
        self.case = case
        self.blocks = list(admit.blocks)
        self.prefill_end = len(admit.tokens)
        self.n_planned = admit.n_cached
        self.most_planned = 0
        """Before drafts were rejected and masks not ready: what blocks were granted for stays
        granted."""
        self.decoding = False
        """Whether it was to sample."""
        self.limit = len(case.prompt) + case.request.max_new_tokens - 1
        self.spans = list(admit.spans)
        self.granted = min(len(admit.tokens) + 1, self.limit) if admit.spans else 0
        """Positions that it had blocks for from the beginning."""

    def excess(self, n: int) -> int:
        """How many of its last `n` tokens may have been beyond the budget: all but the first of a
        span that ends with them."""
        for span in self.spans:
            if self.n_planned == span.end:
                return min(n, span.end - span.start) - 1
        return 0


class Sent(NamedTuple):
    step: Step
    cases: dict[int, Case]
    blocks: set[int]
    """What this step may touch."""
