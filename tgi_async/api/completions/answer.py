"""Replies of `/v1/completions`, whole and in chunks."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType, structs

from tgi_async.api.completions.logprobs import LogprobsWriter, Piece
from tgi_async.api.completions.schema import Completion, CompletionChoice, CompletionRequest
from tgi_async.api.encoding import Events
from tgi_async.api.engine_client import Generation
from tgi_async.api.finished import Finished, text_of
from tgi_async.api.openai.prompt_logprobs import (
    PromptScores,
    RankedScores,
    prompt_logprobs_of,
)
from tgi_async.api.openai.reply_schema import PromptLogprob, Usage, now, unique_id
from tgi_async.api.service import Service
from tgi_async.generation import Drafts, Emitted, FinishReason, GenerationRequest, Token


class CompletionAnswer:
    """Builds the reply, or the chunks of it, to one request.

    Choices are numbered through: those of the first prompt, of the second, and so on.
    `prompt_pieces` has the tokens of each prompt where their log-probabilities are asked for.
    """

    def __init__(
        self,
        service: Service,
        body: CompletionRequest,
        texts: Sequence[str],
        requests: Sequence[GenerationRequest],
        prompt_pieces: Sequence[Sequence[Piece]],
        *,
        reply_name: str = "",
    ) -> None:
        self._service = service
        self._id = unique_id("cmpl", reply_name)
        self._created = now()
        self._model = service.limits.model_names[0]
        self._fingerprint = service.build.fingerprint
        self._dialect = service.limits.dialect
        self._body = body
        self._n = body.n_choices(service.limits)
        self._echoed = texts if body.echo else [""] * len(texts)
        self._prompt_pieces = prompt_pieces
        self._tokenizer = service.tokenizer
        self._prompts = [request.prompt for request in requests]
        self._n_prompt = list(map(len, self._prompts))
        self._n_streamed = [0] * (self._n * len(texts))
        self._writers = [
            LogprobsWriter(service.tokenizer, len(self._echoed[index // self._n]), body.n_logprobs)
            for index in range(len(self._n_streamed))
        ]

    def whole(self, finished: Sequence[Finished]) -> Completion:
        """Return the whole reply, with the best completions of each prompt."""
        n_each = len(finished) // len(self._n_prompt)
        shown: list[tuple[Finished, Finished]] = []
        for start in range(0, len(finished), n_each):
            group = finished[start : start + n_each]
            first = group[0]
            if n_each > self._n:
                group = sorted(group, key=lambda one: one.mean_logprob, reverse=True)[: self._n]
            shown += [(one, first) for one in group]
        choices = [
            structs.replace(
                self._choice(index, one.tokens, one.finish_reason, one),
                prompt_logprobs=self._prompt_logprobs(index, first),
            )
            for index, (one, first) in enumerate(shown)
        ]
        usage = self._usage(
            [len(one.tokens) for one in finished],
            [one.n_cached for one in finished[::n_each]],
            self._service.gained(finished),
        )
        return self._completion(choices, usage)

    def events(self, index: int, emitted: Emitted, generation: Generation) -> Events:
        """Return one chunk for all tokens that came together.

        Usage is in the last chunk of each choice, as in TGI, unless OpenAI's `include_usage` asks
        for it once at the end.
        """
        first = not self._n_streamed[index]
        self._n_streamed[index] += len(emitted.tokens)
        choice = self._choice(index, emitted.tokens, emitted.finish_reason, generation, first=first)
        if first and index % self._n == 0:
            choice = structs.replace(
                choice, prompt_logprobs=self._prompt_logprobs(index, generation)
            )
        usage: Usage | UnsetType = UNSET
        if emitted.finish_reason is not None and not self._body.include_usage:
            n_generated = 0 if self._body.scores_only else self._n_streamed[index]
            usage = self._usage_of(
                self._n_prompt[index // self._n],
                n_generated,
                generation.n_cached,
                self._service.gained([generation]),
            )
        return [self._completion([choice], usage)]

    def ending(self, n_cached: Sequence[int], drafts: Drafts | None) -> Events:
        """Return the extra chunk that `stream_options.include_usage` asks for."""
        if not self._body.include_usage:
            return ()
        return [self._completion([], self._usage(self._n_streamed, n_cached, drafts))]

    def _choice(
        self,
        index: int,
        tokens: Sequence[Token],
        reason: FinishReason | None,
        scores: PromptScores,
        *,
        first: bool = True,
    ) -> CompletionChoice:
        """Return a choice or a part of it; the `first` part has the prompt, if that is echoed."""
        if self._body.scores_only:
            tokens, reason = (), reason and "length"
        logprobs = None
        place = index // self._n
        if self._body.n_logprobs is not None:
            pieces = self._prompt_pieces[place] if first and self._prompt_pieces else ()
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
        """Return the prompt's log-probabilities of a choice, if asked for."""
        n = self._body.n_prompt_logprobs
        if n is None:
            return UNSET
        return prompt_logprobs_of(self._tokenizer, self._prompts[index // self._n], scores, n)

    def _reason(self, reason: FinishReason | None) -> str | None:
        if self._body.stream and not self._dialect.shows_reason_at_end_only:
            return reason or ""
        return reason and self._dialect.finish_reason(reason)

    def _usage(
        self, n_generated: Sequence[int], n_cached: Sequence[int], drafts: Drafts | None
    ) -> Usage:
        """Return the usage of all prompts; `n_cached` has one count for each."""
        n_shown = 0 if self._body.scores_only else sum(n_generated)
        return self._usage_of(sum(self._n_prompt), n_shown, sum(n_cached), drafts)

    def _usage_of(
        self, n_prompt: int, n_generated: int, n_cached: int, drafts: Drafts | None
    ) -> Usage:
        if not self._dialect.shows_usage_details:
            return Usage.of(n_prompt, n_generated)
        return Usage.of(n_prompt, n_generated, cached_tokens=n_cached, drafts=drafts)

    def _completion(self, choices: list[CompletionChoice], usage: Usage | UnsetType) -> Completion:
        return Completion(
            id=self._id,
            created=self._created,
            model=self._model,
            system_fingerprint=self._fingerprint,
            choices=choices,
            usage=usage,
        )
