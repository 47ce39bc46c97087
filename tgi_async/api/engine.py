"""What the API needs of the engine. The engine satisfies these as it is."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Protocol

from tgi_async.generation import Emitted, GenerationRequest, Timings, TopToken
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
        """Of its random numbers."""

    @property
    def timings(self) -> Timings:
        """Complete at the end."""

    @property
    def n_cached(self) -> int:
        """Prompt tokens found in the prefix cache; known with the first emitted token."""

    @property
    def prompt_logprobs(self) -> list[float | None]:
        """One for each prompt token (None for the first), complete with the first emitted token."""

    @property
    def prompt_ranks(self) -> list[int | None]:
        """How many tokens are at least as likely at each place as the prompt's."""

    @property
    def prompt_top_tokens(self) -> list[tuple[TopToken, ...]]:
        """The likeliest tokens at each prompt token (none at the first), where they are wanted."""

    tap: Callable[[Emitted], bool] | None
    """Called with what was emitted, but for the end, before the reader that awaits it is woken.

    It returns whether it took it. It is called in the engine's turn, and only while a reader
    awaits, so that the order stays.
    """

    def __aiter__(self) -> AsyncIterator[Emitted]: ...

    def cancel(self) -> None:
        """Give up; frees its blocks at once. Does nothing when it has ended already."""


class Engine(Gauges, Protocol):
    """Takes generations, and says how it is."""

    @property
    def ready(self) -> bool:
        """Whether the worker is there and makes progress."""

    def reserve(
        self, client: str, n_rows: int, n_bytes: int, on_evicted: Callable[[], None]
    ) -> Reservation:
        """Reserve rows for generations to come. `on_evicted` is called if others get them.

        Raises:
            ValidationError: there are never so many.
            Overloaded: there is no room now.
            Unhealthy: the engine is stopping.
        """

    def release(self, reservation: Reservation) -> None:
        """Give its rows back. Does nothing the second time."""

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue a request.

        Raises:
            ValidationError: it can never fit.
            Overloaded: its reservation was evicted.
            Unhealthy: the engine is stopping.
        """
