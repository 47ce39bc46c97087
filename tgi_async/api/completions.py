"""`/v1/completions`, for one prompt or several."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from msgspec import UNSET, UnsetType, structs

from tgi_async.api.bad_words import banned_of
from tgi_async.api.body import BodyRefused
from tgi_async.api.completion_logprobs import LogprobsWriter, Piece, PromptScores, pieces_of
from tgi_async.api.dialect import Dialect
from tgi_async.api.encoding import Events
from tgi_async.api.engine import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import Finished, collect_all, text_of
from tgi_async.api.form import Form, form_of
from tgi_async.api.limits import set_by
from tgi_async.api.openai import (
    body_type,
    early_errors,
    read_body,
    stream_choices,
    stream_error_type,
)
from tgi_async.api.operation import Post
from tgi_async.api.prompt_logprobs import RankedScores, prompt_logprobs_of
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import EventStream, Reply
from tgi_async.api.schemas.completions import Completion, CompletionChoice, CompletionRequest
from tgi_async.api.schemas.openai import PromptLogprob, Usage, now, unique_id
from tgi_async.api.service import Service, choices_of
from tgi_async.api.timing import reply_headers
from tgi_async.errors import ServerError
from tgi_async.generation import Emitted, FinishReason, GenerationRequest, Token

Prompt = str | list[int]
"""A text, or token ids."""


class SuffixNotSupported(ServerError):
    """Text after the completion was asked for."""

    status = 422
    error_type = "suffix not supported"
    failure = "validation"


class TooManyPrompts(ServerError):
    """More prompts in one body than `max_client_batch_size`."""

    status = 422
    error_type = "batch size exceeded"
    failure = "validation"


async def completions(
    service: Service, body: CompletionRequest, context: RequestContext
) -> Reply[Completion] | EventStream:
    """Complete each prompt, whole or as one stream in which they take turns."""
    if body.stream:
        return EventStream(partial(_stream, service, body, context))
    return await _whole(service, body, context)


async def _whole(
    service: Service, body: CompletionRequest, context: RequestContext
) -> Reply[Completion]:
    async with _completing(service, body, context) as batch:
        finished = await collect_all(batch.generations)
    for one in finished:
        service.account(one.timings, len(one.tokens))
    headers = reply_headers(
        context,
        service.compute_type,
        batch.n_characters,
        batch.requests,
        [one.timings for one in finished],
        sum(len(one.tokens) for one in finished),
    )
    return Reply(batch.answer.whole(finished), headers)


async def _stream(
    service: Service, body: CompletionRequest, context: RequestContext, exchange: Exchange
) -> None:
    async with early_errors(service, exchange), _completing(service, body, context) as batch:
        answer, generations = batch.answer, batch.generations

        def events(index: int, emitted: Emitted) -> Events:
            return answer.events(index, emitted, generations[index])

        def ending() -> Events:
            return answer.ending([one.n_cached for one in generations[:: batch.n_each]])

        await stream_choices(service, exchange, generations, batch.n_characters, events, ending)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts that are being completed, each of them `n_each` times."""

    n_characters: int
    n_each: int
    requests: list[GenerationRequest]
    generations: list[Generation]
    answer: _Answer


@asynccontextmanager
async def _completing(
    service: Service, body: CompletionRequest, context: RequestContext
) -> AsyncIterator[_Batch]:
    """Hold rows, and generate the completions."""
    body = read_body(body, context, service.limits.dialect)
    prompts = _prompts(service, body)
    n_each = body.n_generated(service.limits)
    body.check_own(service.limits)
    form = form_of(body)
    async with service.admission.take(context, len(prompts) * n_each):
        banned = await banned_of(service, body)
        requests = [
            await _request(service, body, prompt, context, form, banned) for prompt in prompts
        ]
        if body.truncate_prompt_tokens is None:
            texts = [await _text_of(service, prompt) for prompt in prompts]
        else:
            texts = [await _text_of(service, request.prompt) for request in requests]
        scored: list[list[Piece]] = []
        if body.echo and body.n_logprobs is not None:
            scored = [
                await service.in_pool(pieces_of, service.tokenizer, text, request.prompt)
                for text, request in zip(texts, requests, strict=True)
            ]
        generations = service.submit_all(
            [
                each
                for request in requests
                for each in choices_of(request, n_each, scored_once=not scored)
            ]
        )
        answer = _Answer(service, body, texts, requests, scored)
        yield _Batch(sum(map(len, texts)), n_each, requests, generations, answer)


async def _request(
    service: Service,
    body: CompletionRequest,
    prompt: Prompt,
    context: RequestContext,
    form: Form | None,
    banned: list[list[int]],
) -> GenerationRequest:
    # Scoring a prompt is a generation of one token, which is not shown.
    max_new_tokens = 1 if body.scores_only else body.most_new_tokens
    n_logprobs = body.n_logprobs
    dialect = service.limits.dialect
    request = await service.request(
        prompt,
        body.parameters(
            service.limits, max_new_tokens, n_logprobs, None if form is None else form.grammar
        ),
        context,
        logprobs=n_logprobs is not None or (body.best_of or 1) > 1,
        include_stop=dialect.shows_stop_sequences or body.includes_stop,
        add_special_tokens=body.add_special_tokens is not False,
        names=body.names(service.limits, form and form.field),
        truncated=lambda tokens: body.truncated(tokens, service.limits),
    )
    if dialect.reads_fields_of_tgi_only:
        return request
    request = body.completed(
        request,
        logprobs=request.sampling.logprobs,
        banned=banned,
        special_texts=service.tokenizer.special_texts,
    )
    if not body.echo or n_logprobs is None:
        return request
    n_top = max(n_logprobs, request.prompt_top_n_tokens)
    return structs.replace(request, prompt_logprobs=True, prompt_top_n_tokens=n_top)


class _Answer:
    """Builds the reply, or the chunks of it, to one request.

    Choices are numbered through: those of the first prompt, of the second, and so on. `scored` has
    the prompts in pieces where their log-probabilities are told.
    """

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        texts: Sequence[str],
        requests: Sequence[GenerationRequest],
        scored: Sequence[Sequence[Piece]],
    ) -> None:
        self._id = unique_id("cmpl")
        self._created = now()
        self._model = service.limits.model_names[0]
        self._fingerprint = service.fingerprint
        self._dialect = service.limits.dialect
        self._body = body
        self._n = body.n_choices(service.limits)
        self._echoed = texts if body.echo else [""] * len(texts)
        self._scored = scored
        self._tokenizer = service.tokenizer
        self._prompts = [request.prompt for request in requests]
        self._n_prompt = list(map(len, self._prompts))
        self._n_streamed = [0] * (self._n * len(texts))
        self._writers = [
            LogprobsWriter(service.tokenizer, len(self._echoed[index // self._n]), body.n_logprobs)
            for index in range(len(self._n_streamed))
        ]

    def whole(self, finished: Sequence[Finished]) -> Completion:
        """The whole reply; of each prompt's completions, the best ones."""
        n_each = len(finished) // len(self._n_prompt)
        told: list[tuple[Finished, Finished]] = []
        for start in range(0, len(finished), n_each):
            group = finished[start : start + n_each]
            scored = group[0]
            if n_each > self._n:
                group = sorted(group, key=lambda one: one.mean_logprob, reverse=True)[: self._n]
            told += [(one, scored) for one in group]
        choices = [
            structs.replace(
                self._choice(index, one.tokens, one.finish_reason, one),
                prompt_logprobs=self._prompt_logprobs(index, scored),
            )
            for index, (one, scored) in enumerate(told)
        ]
        usage = self._usage(
            [len(one.tokens) for one in finished], [one.n_cached for one in finished[::n_each]]
        )
        return self._completion(choices, usage)

    def events(self, index: int, emitted: Emitted, scores: RankedScores) -> Events:
        """Return one chunk for all tokens that came together.

        Usage is in the last chunk of each choice, as in TGI, unless OpenAI's `include_usage` asks
        for it once at the end.
        """
        first = not self._n_streamed[index]
        self._n_streamed[index] += len(emitted.tokens)
        choice = self._choice(index, emitted.tokens, emitted.finish_reason, scores, first=first)
        if first and index % self._n == 0:
            choice = structs.replace(choice, prompt_logprobs=self._prompt_logprobs(index, scores))
        usage: Usage | UnsetType = UNSET
        if emitted.finish_reason is not None and not self._body.include_usage:
            n_generated = 0 if self._body.scores_only else self._n_streamed[index]
            usage = self._usage_of(self._n_prompt[index // self._n], n_generated, scores.n_cached)
        return [self._completion([choice], usage)]

    def ending(self, n_cached: Sequence[int]) -> Events:
        """Return the extra chunk that `stream_options.include_usage` asks for."""
        if not self._body.include_usage:
            return ()
        return [self._completion([], self._usage(self._n_streamed, n_cached))]

    def _choice(
        self,
        index: int,
        tokens: Sequence[Token],
        reason: FinishReason | None,
        scores: PromptScores,
        *,
        first: bool = True,
    ) -> CompletionChoice:
        """A choice, or a part of it: the `first` one has the prompt, if that is echoed."""
        if self._body.scores_only:
            tokens, reason = (), reason and "length"
        logprobs = None
        place = index // self._n
        if self._body.n_logprobs is not None:
            pieces = self._scored[place] if first and self._scored else ()
            logprobs = self._writers[index].write(tokens, pieces, scores)
        return CompletionChoice(
            index=index,
            text=(self._echoed[place] if first else "") + text_of(tokens),
            logprobs=logprobs,
            finish_reason=self._reason(reason),
        )

    def _prompt_logprobs(
        self, index: int, scores: RankedScores
    ) -> list[dict[int, PromptLogprob] | None] | UnsetType:
        """Those of the prompt of a choice, if they are wanted."""
        n = self._body.n_prompt_logprobs
        if n is None:
            return UNSET
        return prompt_logprobs_of(self._tokenizer, self._prompts[index // self._n], scores, n)

    def _reason(self, reason: FinishReason | None) -> str | None:
        if self._body.stream and not self._dialect.shows_reason_at_end_only:
            return reason or ""
        return reason and self._dialect.finish_reason(reason)

    def _usage(self, n_generated: Sequence[int], n_cached: Sequence[int]) -> Usage:
        """Of all prompts and all that was generated for them; `n_cached` is one for each prompt."""
        n_told = 0 if self._body.scores_only else sum(n_generated)
        return self._usage_of(sum(self._n_prompt), n_told, sum(n_cached))

    def _usage_of(self, n_prompt: int, n_generated: int, n_cached: int) -> Usage:
        cached = n_cached if self._dialect.shows_usage_details else None
        return Usage.of(n_prompt, n_generated, cached_tokens=cached)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )


def _prompts(service: Service, body: CompletionRequest) -> list[Prompt]:
    if body.prompt == []:
        raise BodyRefused.of_wrong_type(
            "Empty array detected. Do not use an empty array for the prompt.", "prompt"
        )
    if body.suffix is not None and (body.suffix or not service.limits.dialect.allows_empty_suffix):
        raise SuffixNotSupported(
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
            param="suffix",
        )
    prompts = _told_apart(body.prompt)
    most = service.limits.max_client_batch_size
    if len(prompts) > most:
        raise TooManyPrompts(
            f"Number of prompts exceeds the maximum allowed batch size of {most}"
            + set_by(service.limits, "--max-client-batch-size"),
            param="prompt",
        )
    return prompts


def _told_apart(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
    if isinstance(prompt, str):
        return [prompt]
    ids = [one for one in prompt if isinstance(one, int)]
    if len(ids) == len(prompt):
        return [ids]
    prompts = [one for one in prompt if not isinstance(one, int)]
    if ids or len(set(map(type, prompts))) > 1:
        raise BodyRefused.of_wrong_type(
            "expected a text, a list of texts, a list of token ids, or a list of such lists",
            "prompt",
        )
    return prompts


async def _text_of(service: Service, prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    return await service.in_pool(service.tokenizer.decode, prompt, skip_special_tokens=False)


def operation(dialect: Dialect) -> Post[CompletionRequest]:
    """Return the operation of this file."""
    return Post(
        path="/v1/completions",
        tag="openai",
        summary="Go on with one text or several, as a stream if `stream` is true; `[DONE]` ends it",
        handler=completions,
        body=body_type(CompletionRequest, dialect),
        reply=(Completion,),
        events=(Completion, stream_error_type(dialect)),
        openai=True,
        timed=True,
    )
