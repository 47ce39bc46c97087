"""`/tokenize`."""

from __future__ import annotations

from tgi_async.api.exchange import Exchange, encode
from tgi_async.api.parameters import check_text
from tgi_async.api.schemas.generate import GenerateRequest, SimpleToken
from tgi_async.api.service import Service
from tgi_async.text.tokenizer import Tokenizer


async def tokenize(service: Service, body: GenerateRequest, exchange: Exchange) -> None:
    """The tokens of `inputs`, special ones added; parameters change nothing, as in TGI."""
    check_text(body.inputs, None, service.limits)
    with service.tokenize_permits.take():
        encoded = await service.in_pool(_encoded_tokens, service, body.inputs)
    await exchange.reply(encoded)


def _encoded_tokens(service: Service, text: str) -> bytes:
    return encode(simple_tokens(service.tokenizer, text))


def simple_tokens(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool = True
) -> list[SimpleToken]:
    """The tokens of `text` as the routes show them.

    Raises:
        ValidationError: `text` cannot be tokenized.
    """
    return [
        SimpleToken(span.id, text[span.start : span.stop], span.start, span.stop)
        for span in tokenizer.spans(text, add_special_tokens=add_special_tokens)
    ]
