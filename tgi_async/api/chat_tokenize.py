"""`/chat_tokenize`."""

from __future__ import annotations

from tgi_async.api.chat_functions import with_tools
from tgi_async.api.chat_prompt import prompt_of
from tgi_async.api.chat_tools import offer_of
from tgi_async.api.exchange import Exchange, encode
from tgi_async.api.parameters import check_text
from tgi_async.api.schemas.chat import ChatRequest
from tgi_async.api.schemas.chat_tokenize import ChatTokenizeResponse
from tgi_async.api.service import Service
from tgi_async.api.tokenize import simple_tokens


async def chat_tokenize(service: Service, body: ChatRequest, exchange: Exchange) -> None:
    """The prompt that the chat route would make, and its tokens; nothing is generated."""
    body = with_tools(body)
    offer = offer_of(body, service.limits.dialect)
    with service.tokenize_permits.take():
        text = await prompt_of(service, body, offer)
        check_text(text, None, service.limits)
        encoded = await service.in_pool(_encoded, service, text)
    await exchange.reply(encoded)


def _encoded(service: Service, text: str) -> bytes:
    # A template writes the special tokens itself.
    tokens = simple_tokens(service.tokenizer, text, add_special_tokens=False)
    return encode(ChatTokenizeResponse(tokens, text))
