"""`/tokenize`, in TGI's form and in vLLM's, and `/detokenize`."""

from __future__ import annotations

from msgspec import Raw

from tgi_async.api.body import JsonBody, JsonBodyVariants
from tgi_async.api.chat.functions import with_tools
from tgi_async.api.chat.prompt import prompt_of
from tgi_async.api.chat.tools import offer_of
from tgi_async.api.dialect import Dialect
from tgi_async.api.encoding import encode
from tgi_async.api.generate.schema import GenerateRequest, SimpleToken
from tgi_async.api.image_prompts import Expanded, Marked
from tgi_async.api.operation import Operation, Post
from tgi_async.api.parameters import check_text, refuse_unbuilt
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.service import Service
from tgi_async.api.tokenize.schema import (
    ChatTokenizeRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    PromptTokenizeRequest,
    TokenizeResponse,
)
from tgi_async.errors import ValidationError

TokenizeRequest = GenerateRequest | PromptTokenizeRequest | ChatTokenizeRequest


async def tokenize(service: Service, body: TokenizeRequest, context: RequestContext) -> Reply[Raw]:
    """Answer with the tokens of a text, or of the prompt that the chat route would render.

    Special ones are added to a text. Parameters of TGI's form change nothing, as in TGI.
    """
    if isinstance(body, GenerateRequest):
        check_text(body.inputs, None, service.limits)
        with service.tokenize_permits.take():
            expanded = await service.expanded(body.inputs, context.client, "inputs")
            return Reply(await service.in_pool(_encoded_tokens, service, expanded))
    with service.tokenize_permits.take():
        content, special = await _content(service, body)
        expanded = await service.expanded(content, context.client, "prompt")
        encoded = await service.in_pool(
            _encoded_ids,
            service,
            expanded,
            add_special_tokens=special,
            with_texts=bool(body.return_token_strs),
        )
    return Reply(encoded)


async def detokenize(
    service: Service, body: DetokenizeRequest, context: RequestContext
) -> Reply[DetokenizeResponse]:
    """Answer with the text of token ids."""
    tokenizer = service.tokenizer
    largest = max(body.tokens, default=0)
    if largest >= tokenizer.vocab_size:
        raise ValidationError(
            f"`tokens` has {largest}, and this model's are below {tokenizer.vocab_size}"
        )
    with service.tokenize_permits.take():
        text = await service.in_pool(tokenizer.decode, body.tokens, skip_special_tokens=False)
    return Reply(DetokenizeResponse(text))


async def _content(
    service: Service, body: PromptTokenizeRequest | ChatTokenizeRequest
) -> tuple[str | Marked, bool]:
    """Return what is tokenized, and whether special tokens are added."""
    if isinstance(body, PromptTokenizeRequest):
        return body.prompt, bool(body.add_special_tokens)
    refuse_unbuilt(chat_template=body.chat_template)
    chat = with_tools(body)
    offer = offer_of(chat, service.limits.dialect)
    prompt = await prompt_of(service, chat, offer)
    return prompt.content, prompt.add_special_tokens


def _encoded_tokens(service: Service, prompt: Expanded) -> Raw:
    # Encoded off the event loop, as there may be many.
    return Raw(encode(simple_tokens(service, prompt)))


def _encoded_ids(
    service: Service, prompt: Expanded, *, add_special_tokens: bool, with_texts: bool
) -> Raw:
    tokenizer = service.tokenizer
    special = add_special_tokens and prompt.adds_special_tokens
    ids = service.encoder.encode(prompt.written, add_special_tokens=special)
    texts = [tokenizer.entry(id) for id in ids] if with_texts else None
    return Raw(encode(TokenizeResponse(len(ids), service.limits.max_total_tokens, ids, texts)))


def simple_tokens(
    service: Service, prompt: Expanded, *, add_special_tokens: bool = True
) -> list[SimpleToken]:
    """Return the tokens of a prompt as TGI shows them.

    Raises:
        ValidationError: the text cannot be tokenized.
    """
    special = add_special_tokens and prompt.adds_special_tokens
    spans = service.encoder.spans(prompt.written, add_special_tokens=special)
    return [
        SimpleToken(span.id, prompt.text[span.start : span.stop], span.start, span.stop)
        for span in spans
    ]


def operations(dialect: Dialect) -> tuple[Operation, ...]:
    """Return the operations of this file."""
    return TOKENIZE if dialect.tokenizes_chats else TOKENIZE_AS_TGI, DETOKENIZE


TOKENIZE = Post(
    path="/tokenize",
    tag="tokenize",
    summary="Tokenize a text, in TGI's form or in vLLM's, or a chat",
    handler=tokenize,
    body=JsonBodyVariants[TokenizeRequest](
        {
            "inputs": GenerateRequest,
            "prompt": PromptTokenizeRequest,
            "messages": ChatTokenizeRequest,
        }
    ),
    reply=(list[SimpleToken], TokenizeResponse),
    generates=False,
)

TOKENIZE_AS_TGI = Post(
    path="/tokenize",
    tag="tokenize",
    summary="Tokenize a text",
    handler=tokenize,
    body=JsonBody(GenerateRequest),
    reply=(list[SimpleToken],),
    generates=False,
)

DETOKENIZE = Post(
    path="/detokenize",
    tag="tokenize",
    summary="The text of tokens",
    handler=detokenize,
    body=JsonBody(DetokenizeRequest),
    reply=(DetokenizeResponse,),
    generates=False,
)
