"""What every handler works with, and the way from a text to a queued generation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import ParamSpec, TypeVar

from msgspec import structs

from tgi_async.api.constraint import vetted
from tgi_async.api.engine import Engine, Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.field_names import OF_TGI, FieldNames
from tgi_async.api.limits import Limits
from tgi_async.api.parameters import (
    GenerateParameters,
    check,
    check_text,
    fit,
    sampling_of,
)
from tgi_async.api.permits import Permits
from tgi_async.errors import ServerError, ValidationError
from tgi_async.generation import GenerationRequest, Timings
from tgi_async.grammar.grammar import Grammar
from tgi_async.grammar.vetting import Vetting
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of the server that a route needs.

    `pool` runs what would hold up the event loop: tokenizing and rendering. Only holders of a
    permit put work into it, so its queue is bounded. `tokenize_permits` are apart from
    `permits`, so that counting tokens goes on while all generations are taken.
    """

    engine: Engine
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    limits: Limits
    metrics: Metrics
    compute_type: str
    permits: Permits
    tokenize_permits: Permits
    pool: ThreadPoolExecutor
    vetting: Vetting | None = None
    """None: no request may have a grammar."""
    version: str = field(default_factory=lambda: version("tgi-async"))

    @property
    def fingerprint(self) -> str:
        """`system_fingerprint` of the OpenAI routes: TGI's form for a server outside docker."""
        return f"{self.version}-native"

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` off the event loop; when cancelled before it began, it never runs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, lambda: function(*args, **kwargs))

    async def request(
        self,
        prompt: str | list[int],
        parameters: GenerateParameters,
        exchange: Exchange,
        *,
        logprobs: bool,
        include_stop: bool,
        add_special_tokens: bool = True,
        names: FieldNames = OF_TGI,
        constraint: Grammar | None = None,
    ) -> GenerationRequest:
        """Validate, and tokenize what is not tokenized yet.

        `truncate` keeps the last tokens. `names` are those of the route's fields; a `constraint`
        counts instead of the grammar. Fairness is owed to the peer's address alone: there is one
        API key, and a key that nobody checks is free text.

        Raises:
            ValidationError: the first rule that is broken, in TGI's order.
            Overloaded: too many grammars are being vetted.
        """
        check(parameters, self.limits, names)
        if isinstance(prompt, str):
            check_text(prompt, parameters.truncate, self.limits, names)
            prompt = await self.in_pool(
                self.tokenizer.encode, prompt, add_special_tokens=add_special_tokens
            )
        if parameters.truncate is not None:
            prompt = prompt[-parameters.truncate :]
        max_new_tokens = fit(len(prompt), parameters.max_new_tokens, self.limits, names)
        if not prompt:
            raise ValidationError(f"`{names.prompt}` cannot be empty")
        grammar = await vetted(
            self.vetting,
            parameters.grammar,
            constraint,
            "tools" if parameters.grammar is None else names.grammar,
            strict_tgi=self.limits.strict_tgi,
        )
        exchange.validation_seconds = time.monotonic() - exchange.started
        self.metrics.request_validated(exchange.validation_seconds, len(prompt), max_new_tokens)
        return GenerationRequest(
            prompt=prompt,
            sampling=sampling_of(parameters, logprobs=logprobs),
            client=exchange.peer,
            max_new_tokens=max_new_tokens,
            stop=parameters.stop_sequences,
            ignore_eos=parameters.ignore_eos,
            prompt_logprobs=parameters.decoder_input_details,
            include_stop=include_stop,
            grammar=grammar,
        )

    def submit(self, request: GenerationRequest) -> Generation:
        """Queue one generation.

        Raises:
            ServerError: it was refused.
        """
        return self.engine.submit(request)

    def submit_choices(self, request: GenerationRequest, n: int) -> list[Generation]:
        """Queue `n` generations of one request, which differ in their random numbers only.

        Raises:
            ServerError: one was refused; none of them runs then.
        """
        return self.submit_all(choices_of(request, n))

    def submit_all(self, requests: Sequence[GenerationRequest]) -> list[Generation]:
        """Queue all of them, or none.

        Raises:
            ServerError: one was refused.
        """
        generations: list[Generation] = []
        try:
            for request in requests:
                generations.append(self.submit(request))
        except ServerError:
            for generation in generations:
                generation.cancel()
            raise
        return generations

    def account(self, timings: Timings, n_generated: int) -> None:
        """Record a generation that ended by itself."""
        self.metrics.request_generated(timings.queued, timings.inference, n_generated)


def choices_of(request: GenerationRequest, n: int) -> list[GenerationRequest]:
    """`n` requests that differ in their random numbers only."""
    return [
        structs.replace(request, sampling=structs.replace(request.sampling, choice=choice))
        for choice in range(n)
    ]
