"""Log-probabilities in the form of OpenAI's completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tgi_async.api.schemas.completions import CompletionLogprobs
from tgi_async.generation import Token
from tgi_async.text.stream import Detokenizer
from tgi_async.text.tokenizer import Tokenizer


class Piece(NamedTuple):
    """A token of a prompt, and where in the prompt it begins, in characters."""

    text: str
    offset: int


def pieces_of(tokenizer: Tokenizer, prompt: str, ids: Sequence[int]) -> list[Piece]:
    """`prompt`, which has been tokenized to `ids`, in pieces.

    A special token is shown by its name, and takes room only where the prompt has that name.
    Offsets are off where the tokenizer itself changes the text, as one does that knows no capitals.
    """
    detokenizer = Detokenizer(tokenizer, [])
    pieces: list[Piece] = []
    offset = 0
    for id in ids:
        text = detokenizer.push(id)
        special = tokenizer.is_special(id)
        if special:
            text = tokenizer.token_text(id)
        pieces.append(Piece(text, offset))
        if not special or prompt.startswith(text, offset):
            offset = min(offset + len(text), len(prompt))
    return pieces


class LogprobsWriter:
    """Writes the tokens of one choice, which go on where its echoed prompt ends."""

    def __init__(self, tokenizer: Tokenizer, n_echoed: int) -> None:
        self._tokenizer = tokenizer
        self._offset = n_echoed

    def write(
        self,
        tokens: Sequence[Token],
        prompt: Sequence[Piece] = (),
        prompt_logprobs: Sequence[float | None] = (),
    ) -> CompletionLogprobs:
        """The next tokens, with those of the prompt before them."""
        # What is before the first token is nothing, so it has no probability.
        scored = [None, *prompt_logprobs[1:]] if prompt else []
        written = CompletionLogprobs(
            tokens=[piece.text for piece in prompt],
            token_logprobs=scored,
            top_logprobs=[None] * len(prompt),
            text_offset=[piece.offset for piece in prompt],
        )
        for token in tokens:
            shown = self._tokenizer.token_text(token.id) if token.special else token.text
            written.tokens.append(shown)
            written.token_logprobs.append(token.logprob)
            written.top_logprobs.append(_top(token, shown))
            written.text_offset.append(self._offset)
            self._offset += len(token.text)
        return written


def _top(token: Token, shown: str) -> dict[str, float]:
    """The likeliest tokens by their texts, and the one that was taken, whether likely or not.

    Several tokens may have one text, such as halves of characters: then the likeliest is told.
    """
    top = {} if token.logprob is None else {shown: token.logprob}
    for one in token.top:
        if one.id != token.id:
            top.setdefault(one.text, one.logprob)
    return top
