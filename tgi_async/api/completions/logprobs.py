"""Log-probabilities in the form of OpenAI's completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tgi_async.api.completions.schema import CompletionLogprobs
from tgi_async.api.openai.prompt_logprobs import PromptScores
from tgi_async.api.openai.reply_schema import finite_logprob
from tgi_async.generation import Token, TopToken
from tgi_async.text.stream import Detokenizer
from tgi_async.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A token of a prompt, and its first character's place in the prompt."""

    id: int
    text: str
    offset: int


def pieces_of(tokenizer: Tokenizer, prompt: str, ids: Sequence[int]) -> list[Piece]:
    """Cut `prompt`, which has been tokenized to `ids`, into its tokens.

    A special token is shown by its name, and takes room only where the prompt has that name.
    Offsets are wrong where the tokenizer itself changes the text, such as to lower case.
    """
    detokenizer = Detokenizer(tokenizer, [])
    pieces: list[Piece] = []
    offset = 0
    for id in ids:
        text = detokenizer.push(id)
        special = tokenizer.is_special(id)
        if special:
            text = tokenizer.token_text(id)
        pieces.append(Piece(id, text, offset))
        if not special or prompt.startswith(text, offset):
            offset = min(offset + len(text), len(prompt))
    return pieces


class LogprobsWriter:
    """Writes the tokens of one choice, whose offsets begin where its echoed prompt ends."""

    def __init__(self, tokenizer: Tokenizer, n_echoed: int, n_top: int | None = None) -> None:
        """`n_top`: how many of the likeliest tokens to show at each place; None: all there are."""
        self._tokenizer = tokenizer
        self._n_top = n_top
        self._offset = n_echoed

    def write(
        self,
        tokens: Sequence[Token],
        prompt: Sequence[Piece] = (),
        scores: PromptScores | None = None,
    ) -> CompletionLogprobs:
        """Return the next tokens, after those of the prompt, which have `scores`."""
        written = CompletionLogprobs([], [], [], [])
        if prompt:
            assert scores is not None
            tops = scores.prompt_top_tokens or [()] * len(prompt)
            for piece, logprob, top in zip(prompt, scores.prompt_logprobs, tops, strict=True):
                written.tokens.append(piece.text)
                written.token_logprobs.append(logprob and finite_logprob(logprob))
                # The first token has no log-probability, as nothing is before it.
                written.top_logprobs.append(
                    None
                    if logprob is None
                    else _top(piece.id, piece.text, logprob, top[: self._n_top])
                )
                written.text_offset.append(piece.offset)
        for token in tokens:
            shown = self._tokenizer.token_text(token.id) if token.special else token.text
            written.tokens.append(shown)
            written.token_logprobs.append(token.logprob and finite_logprob(token.logprob))
            written.top_logprobs.append(_top(token.id, shown, token.logprob, token.top))
            written.text_offset.append(self._offset)
            self._offset += len(token.text)
        return written


def _top(
    id: int, shown: str, logprob: float | None, likeliest: Sequence[TopToken]
) -> dict[str, float]:
    """Return the likeliest tokens by their texts, and the sampled one, likely or not.

    Several tokens may have one text, such as halves of characters: then the likeliest is shown.
    """
    top = {} if logprob is None else {shown: finite_logprob(logprob)}
    for one in likeliest:
        if one.id != id:
            top.setdefault(one.text, finite_logprob(one.logprob))
    return top
