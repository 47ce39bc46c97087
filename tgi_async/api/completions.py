"""`/v1/completions`, for one prompt or several."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from tgi_async.api.body import BodyRefused
from tgi_async.api.engine import Generation
from tgi_async.api.exchange import DONE, Exchange, encode, event
from tgi_async.api.finished import collect_all, text_of
from tgi_async.api.parameters import refuse_unbuilt
from tgi_async.api.schemas.completions import Completion, CompletionChoice, CompletionRequest
from tgi_async.api.schemas.openai import (
    Usage,
    error_event,
    finish_reason_of,
    now,
    unique_id,
)
from tgi_async.api.service import Service
from tgi_async.api.timing import reply_headers, stream_headers
from tgi_async.errors import ServerError, ValidationError
from tgi_async.generation import GenerationRequest


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


async def completions(service: Service, body: CompletionRequest, exchange: Exchange) -> None:
    """A completion of each prompt, whole or as one stream in which they take turns."""
    prompts = _prompts(service, body)
    parameters = body.parameters(body.max_tokens)
    n_characters = sum(map(len, prompts))
    with service.permits.take(len(prompts)):
        requests = [
            await service.request(prompt, parameters, exchange, logprobs=False, include_stop=False)
            for prompt in prompts
        ]
        generations = service.submit_all(requests)
        answer = _Answer(service, requests)
        if body.stream:
            head = stream_headers(service.compute_type, n_characters)
            try:
                await exchange.open_stream(head, error_event)
                await _stream(service, exchange, generations, answer, body.include_usage)
            finally:
                for generation in generations:
                    generation.cancel()
            return
        finished = await collect_all(generations)
    n_generated = sum(len(one.tokens) for one in finished)
    choices = [
        CompletionChoice(
            index=index, text=one.text, finish_reason=finish_reason_of(one.finish_reason)
        )
        for index, one in enumerate(finished)
    ]
    for one in finished:
        service.account(one.timings, len(one.tokens))
    headers = reply_headers(
        exchange,
        service.compute_type,
        n_characters,
        requests,
        [one.timings for one in finished],
        n_generated,
    )
    reply = answer.completion(choices, answer.usage(n_generated))
    await exchange.reply(encode(reply), headers=headers)


async def _stream(
    service: Service,
    exchange: Exchange,
    generations: Sequence[Generation],
    answer: _Answer,
    include_usage: bool,
) -> None:
    """Write the chunks of all generations as they come; the first failure ends the stream.

    Usage is in the last chunk of each prompt, as in TGI, or once at the end, where OpenAI's
    `include_usage` asks for it.
    """

    async def follow(index: int, generation: Generation) -> int:
        n_generated = 0
        async for emitted in generation:
            n_generated += len(emitted.tokens)
            reason = emitted.finish_reason
            choice = CompletionChoice(
                index=index,
                text=text_of(emitted.tokens),
                finish_reason=None if reason is None else finish_reason_of(reason),
            )
            ends = reason is not None and not include_usage
            usage = answer.usage_of(index, n_generated) if ends else UNSET
            await exchange.write(event(answer.completion([choice], usage)))
        service.account(generation.timings, n_generated)
        return n_generated

    if len(generations) == 1:
        n_generated = await follow(0, generations[0])
    else:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [
                    group.create_task(follow(index, generation))
                    for index, generation in enumerate(generations)
                ]
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        n_generated = sum(task.result() for task in tasks)
    last = event(answer.completion([], answer.usage(n_generated))) if include_usage else b""
    await exchange.close(last + DONE)


class _Answer:
    """Builds the reply, or the chunks of it, to one request."""

    def __init__(self, service: Service, requests: Sequence[GenerationRequest]) -> None:
        self._id = unique_id("cmpl")
        self._created = now()
        self._model = service.limits.model_id
        self._fingerprint = service.fingerprint
        self._n_prompt = [len(request.prompt) for request in requests]

    def completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType) -> Completion:
        """A whole reply, or a chunk of a stream."""
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )

    def usage(self, n_generated: int) -> Usage:
        """Of all prompts."""
        return Usage.of(sum(self._n_prompt), n_generated)

    def usage_of(self, index: int, n_generated: int) -> Usage:
        """Of one prompt."""
        return Usage.of(self._n_prompt[index], n_generated)


def _prompts(service: Service, body: CompletionRequest) -> list[str]:
    if body.prompt == []:
        raise BodyRefused.of_wrong_type(
            "prompt: Empty array detected. Do not use an empty array for the prompt."
        )
    if body.suffix is not None:
        raise SuffixNotSupported(
            "Suffix is not supported and can be achieved by preprocessing the prompt."
        )
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    most = service.limits.max_client_batch_size
    if len(prompts) > most:
        raise TooManyPrompts(f"Number of prompts exceeds the maximum allowed batch size of {most}")
    body.check_built()
    refuse_unbuilt(echo=body.echo, logprobs=body.logprobs)
    if body.best_of not in (None, 1):
        raise ValidationError(f"`best_of` must be 1 in this route. Given: {body.best_of}")
    return prompts
