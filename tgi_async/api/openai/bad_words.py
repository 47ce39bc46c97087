"""`bad_words` as in vLLM: words, as sequences of tokens that are not generated."""

from __future__ import annotations

from tgi_async.api.openai.schema import OpenAIRequest
from tgi_async.api.service import Service
from tgi_async.errors import ValidationError
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.wire.messages import MAX_BAN_LENGTH, MAX_BANS

MAX_WORDS = MAX_BANS // 2
"""Most words; each may give two sequences."""


async def banned_of(service: Service, body: OpenAIRequest) -> list[list[int]]:
    """Return the banned sequences: the last token of each is not sampled after the others.

    Raises:
        ValidationError: there are too many words, or one of them is no tokens, or too many.
    """
    words = [body.bad_words] if isinstance(body.bad_words, str) else body.bad_words
    if not words:
        return []
    if len(words) > MAX_WORDS:
        raise ValidationError(f"`bad_words` supports up to {MAX_WORDS} words. Given: {len(words)}")
    return await service.in_pool(_sequences, service.tokenizer, words)


def _sequences(tokenizer: Tokenizer, words: list[str]) -> list[list[int]]:
    """Tokenize each word as it is and, where that gives another first token, behind a space."""
    found: list[list[int]] = []
    for word in dict.fromkeys(words):
        bare = word.lstrip()
        alone = tokenizer.encode(bare, add_special_tokens=False) if bare else []
        if not 0 < len(alone) <= MAX_BAN_LENGTH:
            raise ValidationError(
                f"`bad_words` must be words of 1 to {MAX_BAN_LENGTH} tokens. "
                f"Given: {word[:40]!r}, which has {len(alone)}"
            )
        found.append(alone)
        behind_space = tokenizer.encode(f" {bare}", add_special_tokens=False)
        if behind_space[0] != alone[0] and len(behind_space) == len(alone):
            found.append(behind_space)
    return found
