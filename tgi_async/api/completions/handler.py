"""`/v1/completions`, for one prompt or several."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from msgspec import structs

from tgi_async.api.body import BodyRefused
from tgi_async.api.completions.answer import CompletionAnswer
from tgi_async.api.completions.logprobs import Piece, pieces_of
from tgi_async.api.completions.schema import Completion, CompletionRequest
from tgi_async.api.dialect import Dialect
from tgi_async.api.encoding import Events
from tgi_async.api.engine_client import Generation
from tgi_async.api.exchange import Exchange
from tgi_async.api.finished import collect_all
from tgi_async.api.limits import set_by
from tgi_async.api.openai.answers import (
    body_type,
    early_errors,
    read_body,
    stream_choices,
    stream_error_type,
)
from tgi_async.api.openai.bad_words import banned_of
from tgi_async.api.openai.form import Form, form_of
from tgi_async.api.operation import Post
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import EventStream, Reply
from tgi_async.api.service import PromptSource, Service, choices_of
from tgi_async.api.timing import reply_headers
from tgi_async.errors import ServerError
from tgi_async.generation import Emitted, GenerationRequest

Prompt = str | list[int]
"""A text, or token ids."""


class SuffixNotSupported(ServerError):
    """The request asks for a suffix."""

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
    """Complete each prompt, whole or as one stream in which they are interleaved."""
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
        service.gained(finished),
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
            return answer.ending(
                [one.n_cached for one in generations[:: batch.n_each]], service.gained(generations)
            )

        await stream_choices(service, exchange, generations, batch.n_characters, events, ending)


@dataclass(frozen=True, slots=True)
class _Batch:
    """Prompts that are being completed, each `n_each` times."""

    n_characters: int
    n_each: int
    requests: list[GenerationRequest]
    generations: list[Generation]
    answer: CompletionAnswer


@asynccontextmanager
async def _completing(
    service: Service, body: CompletionRequest, context: RequestContext
) -> AsyncIterator[_Batch]:
    """Reserve rows, and generate the completions."""
    body = read_body(body, context, service.limits.dialect)
    prompts = _prompts(service, body)
    n_each = body.n_generated(service.limits)
    body.check_own(service.limits)
    form = form_of(body)
    async with service.admission.take(context, len(prompts) * n_each):
        banned = await banned_of(service, body)
        cut = body.truncate_prompt_tokens is not None
        requests = [
            await _request(service, body, prompt, context, form, banned) for prompt in prompts
        ]
        scored = body.echo and body.n_logprobs is not None
        texts = [
            await _text_of(
                service,
                # An image is shown as it was sent, or where tokens are shown, as these.
                request.prompt if cut or (scored and request.images) else prompt,
            )
            for prompt, request in zip(prompts, requests, strict=True)
        ]
        prompt_pieces: list[list[Piece]] = []
        if scored:
            prompt_pieces = [
                await service.in_pool(pieces_of, service.tokenizer, text, request.prompt)
                for text, request in zip(texts, requests, strict=True)
            ]
        generations = service.submit_all(
            [
                each
                for request in requests
                for each in choices_of(request, n_each, prompt_logprobs_once=not prompt_pieces)
            ]
        )
        answer = CompletionAnswer(
            service, body, texts, requests, prompt_pieces, reply_name=context.reply_name
        )
        yield _Batch(sum(map(len, texts)), n_each, requests, generations, answer)


async def _request(
    service: Service,
    body: CompletionRequest,
    prompt: Prompt,
    context: RequestContext,
    form: Form | None,
    banned: list[list[int]],
) -> GenerationRequest:
    # Prompt log-probabilities need a generation of one token, which is not shown.
    max_new_tokens = 1 if body.scores_only else body.most_new_tokens
    n_logprobs = body.n_logprobs
    dialect = service.limits.dialect
    request = await service.request(
        PromptSource(
            prompt,
            add_special_tokens=body.add_special_tokens is not False,
            truncated=lambda places: body.truncated(places, service.limits),
        ),
        body.parameters(
            service.limits, max_new_tokens, n_logprobs, None if form is None else form.grammar
        ),
        context,
        logprobs=n_logprobs is not None or (body.best_of or 1) > 1,
        include_stop=dialect.shows_stop_sequences or body.includes_stop,
        names=body.names(service.limits, form and form.field),
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
    prompts = _split_prompts(body.prompt)
    most = service.limits.max_client_batch_size
    if len(prompts) > most:
        raise TooManyPrompts(
            f"Number of prompts exceeds the maximum allowed batch size of {most}"
            + set_by(service.limits, "--max-client-batch-size"),
            param="prompt",
        )
    return prompts


def _split_prompts(prompt: str | list[str | int | list[int]]) -> list[Prompt]:
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
