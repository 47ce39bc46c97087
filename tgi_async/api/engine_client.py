"""The interface between the API and the engine, which `engine.Engine` satisfies."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from tgi_async.generation import Drafts, Emitted, GenerationRequest, Timings, TopToken
from tgi_async.scheduler.reservations import Reservation
from tgi_async.telemetry.metrics import Gauges


class Generation(Protocol):
    """One running generation: an asynchronous iterator over what it has emitted.

    The last `Emitted` has a `finish_reason` and at least one token. `__anext__` may be cancelled at
    any time. It raises `errors.ServerError` (GenerationError, IncompleteGeneration) when the
    generation fails.
    """

    @property
    def seed(self) -> int:
        """The seed of its random numbers."""

    @property
    def timings(self) -> Timings:
        """How long its phases took; complete at the end."""

    @property
    def n_cached(self) -> int:
        """Prompt tokens found in the prefix cache; known with the first emitted token."""

    @property
    def drafts(self) -> Drafts:
        """The drafts that were verified for it so far."""

    @property
    def prompt_logprobs(self) -> list[float | None]:
        """One for each prompt token (None for the first), complete with the first emitted token."""

    @property
    def prompt_ranks(self) -> list[int | None]:
        """The rank of each prompt token: how many tokens are at least as likely (None for the
        first)."""

    @property
    def prompt_top_tokens(self) -> list[tuple[TopToken, ...]]:
        """The likeliest tokens at each prompt position (none at the first), where requested."""

    sink: Callable[[Emitted], bool] | None
    """Called with what was emitted, but for the end, before the reader that awaits it is woken.

    It returns whether it took it. It is called in the engine's turn, and only while a reader
    awaits, so that the order stays.
    """

    def __aiter__(self) -> AsyncIterator[Emitted]: ...

    def cancel(self) -> None:
        """Cancel it and free its blocks at once. Does nothing when it has ended already."""


class EngineClient(Gauges, Protocol):
    """Accept requests, and report health and queue lengths."""

    @property
    def ready(self) -> bool:
        """Whether the worker runs and makes progress."""

    def reserve(
        self, client: str, n_rows: int, n_bytes: int, on_evicted: Callable[[], None]
    ) -> Reservation:
        """Reserve rows for later requests. `on_evicted` is called if other clients get them.

        Raises:
            ValidationError: more rows than the server ever has.
            Overloaded: no rows are free now.
            Unhealthy: the engine is stopping.
        """

    def release(self, reservation: Reservation) -> None:
        """Free its rows. Does nothing the second time."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request.

        Raises:
            ValidationError: it can never fit.
            Overloaded: its reservation was evicted.
            Unhealthy: the engine is stopping.
        """
