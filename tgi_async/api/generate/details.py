"""The `details` of TGI's own routes."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import UNSET, UnsetType

from tgi_async.api.finished import Finished
from tgi_async.api.generate.schema import BestOfSequence, Details, PrefillToken, TokenBody
from tgi_async.generation import GenerationRequest, Token
from tgi_async.text.tokenizer import Tokenizer


class DetailsWriter:
    """Writes tokens as these routes show them: a special one by its name."""

    def __init__(self, tokenizer: Tokenizer, request: GenerationRequest) -> None:
        self._tokenizer = tokenizer
        self._request = request

    def shown_seed(self, seed: int) -> int | None:
        """Return the seed that makes the same text again; None where nothing was drawn."""
        return seed if self._request.sampling.do_sample else None

    def details(
        self, best: Finished, others: Sequence[Finished], prefill: list[PrefillToken], shown: str
    ) -> Details:
        """Return details of the best sequence, with the others; `shown` goes before each text."""
        rest = [
            BestOfSequence(
                generated_text=shown + other.text,
                finish_reason=other.finish_reason,
                generated_tokens=len(other.tokens),
                seed=self.shown_seed(other.seed),
                prefill=prefill,
                tokens=[self.token(token) for token in other.tokens],
                top_tokens=self._all_top_tokens(other),
            )
            for other in others
        ]
        return Details(
            finish_reason=best.finish_reason,
            generated_tokens=len(best.tokens),
            seed=self.shown_seed(best.seed),
            prefill=prefill,
            tokens=[self.token(token) for token in best.tokens],
            best_of_sequences=rest or UNSET,
            top_tokens=self._all_top_tokens(best),
        )

    def prefill(self, finished: Finished) -> list[PrefillToken]:
        """Return the prompt's tokens; the first, with nothing before it, has no log-probability."""
        logprobs = [None, *finished.prompt_logprobs[1:]]
        return [
            PrefillToken(id, self._tokenizer.token_text(id), logprob)
            for id, logprob in zip(self._request.prompt, logprobs, strict=True)
        ]

    def token(self, token: Token) -> TokenBody:
        """Return an emitted token."""
        text = self._tokenizer.token_text(token.id) if token.special else token.text
        return TokenBody(token.id, text, token.logprob, token.special)

    def top_tokens(self, token: Token) -> list[TokenBody]:
        """Return the likeliest tokens at the place of `token`."""
        return [TokenBody(top.id, top.text, top.logprob, top.special) for top in token.top]

    def _all_top_tokens(self, finished: Finished) -> list[list[TokenBody]] | UnsetType:
        if not self._request.sampling.top_n_tokens:
            return UNSET
        return [self.top_tokens(token) for token in finished.tokens]
