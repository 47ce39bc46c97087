"""The parts of the server that handlers use, and the way from a text to a queued generation."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, ParamSpec, Protocol, TypeVar

from msgspec import structs

from tgi_async.api.admission import Admission
from tgi_async.api.decoding_turns import DecodingTurns
from tgi_async.api.engine_client import EngineClient, Generation
from tgi_async.api.field_names import OF_TGI, FieldNames
from tgi_async.api.grammar.constraint import checked
from tgi_async.api.ignored_fields import IgnoredFields
from tgi_async.api.image_prompts import Expanded, ImagePrompts, Marked, shown_text
from tgi_async.api.key_usage import within
from tgi_async.api.limits import Limits
from tgi_async.api.parameters import (
    GenerateParameters,
    check,
    check_text,
    fit,
    sampling_of,
)
from tgi_async.api.permits import Permits
from tgi_async.api.request_context import RequestContext
from tgi_async.api.resume.streams import Streams
from tgi_async.build_info import BuildInfo, build_info
from tgi_async.errors import GenerationError, ServerError, ValidationError
from tgi_async.generation import Drafts, GenerationRequest, Timings
from tgi_async.grammar.checker import GrammarChecker
from tgi_async.grammar.grammar import Grammar
from tgi_async.images.family import Family
from tgi_async.images.images import Images, ReadyImage
from tgi_async.images.placeholders import Placeholders, find_placeholders
from tgi_async.scheduler.blocks import Salt
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tokenizer import Tokenizer

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")


class _Drafted(Protocol):
    @property
    def drafts(self) -> Drafts: ...


class PromptSource(NamedTuple):
    """A text or its tokens. `Marked` is a chat's, for a model that takes images; in another text
    they are TGI's markdown."""

    content: str | Marked | list[int]
    add_special_tokens: bool = True
    truncated: Callable[[range], range] | None = None
    """Which of the tokens are kept, of all of their places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """The parts of the server that a route needs.

    `pool` runs what would hold up the event loop: tokenizing and rendering. Only requests that
    were admitted or hold a permit put work into it, so its queue is bounded. `tokenize_permits`
    are apart from `admission`, so that counting tokens goes on while no generation finds room.
    """

    engine: EngineClient
    tokenizer: Tokenizer
    chat_template: ChatTemplate | None
    limits: Limits
    metrics: Metrics
    compute_type: str
    admission: Admission
    tokenize_permits: Permits
    pool: Executor
    checker: GrammarChecker | None = None
    """The grammar checker; None: requests with a grammar are refused."""
    chat_stop_token_ids: tuple[int, ...] = ()
    """Tokens that end an answer in a chat, besides the model's own."""
    streams: Streams | None = None
    """Those that clients may go on with; None: none are."""
    images: Images | None = None
    """What gets images ready; None: the model takes none."""
    build: BuildInfo = field(default_factory=build_info)
    started: int = field(default_factory=lambda: int(time.time()))
    """The time of the start, in seconds since 1970."""
    decoding_turns: DecodingTurns = field(default_factory=DecodingTurns)
    ignored_fields: IgnoredFields = field(init=False)
    image_prompts: ImagePrompts | None = field(init=False)
    reading: bytes = field(init=False)
    """A digest of what decides how a request is understood and how its tokens are shown: streams of
    servers with another one are others."""

    def __post_init__(self) -> None:
        made = None if self.images is None else ImagePrompts(self.images, self.tokenizer)
        object.__setattr__(self, "image_prompts", made)
        limits, template = self.limits, self.chat_template
        said = (limits.dialect, limits.tool_call_parser, limits.sampling_defaults)
        source = b"" if template is None else template.digest
        digest = blake2b(repr(said).encode() + source, digest_size=16).digest()
        object.__setattr__(self, "reading", digest)
        object.__setattr__(self, "ignored_fields", IgnoredFields(self.metrics))

    async def in_pool(self, function: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """Run `function` off the event loop; when cancelled before it began, it never runs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.pool, lambda: function(*args, **kwargs))

    @property
    def pipeline_tag(self) -> str | None:
        """The hub's name for what the model does."""
        return self.limits.model_pipeline_tag if self.images is None else "image-text-to-text"

    @property
    def encoder(self) -> Tokenizer:
        """What makes tokens of `Expanded.written`, and of texts that were typed."""
        return self.tokenizer if self.image_prompts is None else self.image_prompts.tokenizer

    async def expanded(self, content: str | Marked, client: str, field: str) -> Expanded:
        """Return a prompt's text with what stands in the places of its images, and these.

        `field` is the text's name.

        Raises:
            ValidationError: an image cannot be taken.
            Overloaded: there is no room for it.
        """
        if self.image_prompts is None:
            text = shown_text(content)
            return Expanded(text, text)
        return await self.image_prompts.expanded(content, client, self.pool, field)

    async def request(
        self,
        prompt: PromptSource,
        parameters: GenerateParameters,
        context: RequestContext,
        *,
        logprobs: bool,
        include_stop: bool,
        names: FieldNames = OF_TGI,
        constraint: Grammar | None = None,
        stop_token_ids: tuple[int, ...] = (),
    ) -> GenerationRequest:
        """Validate, and tokenize where necessary.

        `parameters.truncate` keeps the last tokens. `names` are those
        of the route's fields; a `constraint` counts instead of the grammar. `stop_token_ids` end
        the text too, unless the client sets `ignore_eos`.

        Raises:
            ValidationError: the first rule that is broken, in TGI's order.
            Overloaded: too many grammars are being checked.
        """
        check(parameters, self.limits, names)
        whole, ready = await self._tokens(prompt, parameters, context, names)
        kept = range(len(whole))
        if parameters.truncate is not None:
            kept = kept[-parameters.truncate :]
        if prompt.truncated is not None:
            kept = prompt.truncated(kept)
        ids = whole if len(kept) == len(whole) else whole[kept.start : kept.stop]
        images = Placeholders()
        if self.image_prompts is not None:
            images = await self._placeholders(whole, ready, self.image_prompts.family, kept)
        max_new_tokens = fit(
            len(ids), parameters.max_new_tokens, self.limits, names, images.n_tokens_of_each
        )
        if context.key is not None:
            wanted = parameters.max_new_tokens
            max_new_tokens = within(context.key, len(ids), max_new_tokens, given=wanted is not None)
        if not ids:
            raise ValidationError(f"`{names.prompt}` cannot be empty")
        grammar = await checked(
            self.checker,
            parameters.grammar,
            constraint,
            "tools" if parameters.grammar is None else names.grammar,
            ignore=context.ignore,
            dialect=self.limits.dialect,
        )
        context.validation_seconds = time.monotonic() - context.started
        self.metrics.request_validated(context.validation_seconds, len(ids), max_new_tokens)
        return GenerationRequest(
            prompt=ids,
            sampling=sampling_of(
                parameters,
                logprobs=logprobs,
                seed=None if context.seeds is None else next(context.seeds),
            ),
            client=context.client,
            weight=context.weight,
            tenant=context.tenant if self.limits.max_drafts else "",
            max_new_tokens=max_new_tokens,
            stop=parameters.stop_sequences,
            ignore_eos=parameters.ignore_eos,
            stop_token_ids=() if parameters.ignore_eos else stop_token_ids,
            prompt_logprobs=parameters.decoder_input_details,
            include_stop=include_stop,
            grammar=grammar,
            salts=(*self._salts(context), *images.salts),
            images=images.images,
            held=images.held,
            spans=images.spans,
            reservation=context.reservation,
        )

    def _salts(self, context: RequestContext) -> tuple[Salt, ...]:
        return (context.cache_salt,) if self.limits.prefix_cache_salt == "tenant" else ()

    async def _placeholders(
        self, ids: list[int], ready: Sequence[ReadyImage], family: Family, kept: range
    ) -> Placeholders:
        if not ready:
            return find_placeholders(ids, ready, family, start=kept.start, stop=kept.stop)
        try:
            return await self.in_pool(
                find_placeholders, ids, ready, family, start=kept.start, stop=kept.stop
            )
        except GenerationError:
            log.exception("a prompt's images were not found among its tokens: the request fails")
            raise

    async def _tokens(
        self,
        prompt: PromptSource,
        parameters: GenerateParameters,
        context: RequestContext,
        names: FieldNames,
    ) -> tuple[list[int], Sequence[ReadyImage]]:
        """Return all tokens of a prompt, and its images."""
        content = prompt.content
        if isinstance(content, list):
            if self.image_prompts is not None:
                self.image_prompts.check_ids(content, names.prompt)
            return content, ()
        text = content if isinstance(content, str) else content.text
        check_text(text, parameters.truncate, self.limits, names)
        expanded = await self.expanded(content, context.client, names.prompt)
        special = prompt.add_special_tokens and expanded.adds_special_tokens
        ids = await self.in_pool(self.encoder.encode, expanded.written, add_special_tokens=special)
        return ids, expanded.images

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
        return self.submit_all(choices_of(request, n, prompt_logprobs_once=True))

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

    def gained(self, generations: Iterable[_Drafted]) -> Drafts | None:
        """Return the drafts of generations; None where there is no speculation."""
        if not self.limits.max_drafts:
            return None
        return Drafts.sum(one.drafts for one in generations)

    def account(self, timings: Timings, n_generated: int) -> None:
        """Record a generation that ended by itself."""
        self.metrics.request_generated(timings.queued, timings.inference, n_generated)


def choices_of(
    request: GenerationRequest, n: int, *, prompt_logprobs_once: bool = False
) -> list[GenerationRequest]:
    """Return `n` requests that differ in their random numbers only.

    Their prompt is one: `prompt_logprobs_once` leaves its log-probabilities to the first.
    """
    other = request
    if prompt_logprobs_once:
        other = structs.replace(request, prompt_logprobs=False, prompt_top_n_tokens=0)
    return [
        structs.replace(one, sampling=structs.replace(one.sampling, choice=choice))
        for choice, one in enumerate([request, *[other] * (n - 1)])
    ]
