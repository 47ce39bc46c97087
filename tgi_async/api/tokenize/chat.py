"""`/chat_tokenize`."""

from __future__ import annotations

from msgspec import Raw, Struct

from tgi_async.api.body import JsonBody
from tgi_async.api.chat.functions import with_tools
from tgi_async.api.chat.prompt import prompt_of
from tgi_async.api.chat.schema import ChatRequest
from tgi_async.api.chat.tools import offer_of
from tgi_async.api.encoding import encode
from tgi_async.api.generate.schema import SimpleToken
from tgi_async.api.image_prompts import Expanded
from tgi_async.api.operation import Post
from tgi_async.api.parameters import check_text
from tgi_async.api.request_context import RequestContext
from tgi_async.api.result import Reply
from tgi_async.api.service import Service
from tgi_async.api.tokenize.handler import simple_tokens


class ChatTokenizeResponse(Struct, frozen=True):
    """The prompt of a chat and its tokens."""

    tokenize_response: list[SimpleToken]
    templated_text: str


async def chat_tokenize(service: Service, body: ChatRequest, context: RequestContext) -> Reply[Raw]:
    """Answer with the prompt that the chat route would render, and with its tokens."""
    body = with_tools(body)
    offer = offer_of(body, service.limits.dialect)
    with service.tokenize_permits.take():
        prompt = await prompt_of(service, body, offer)
        check_text(prompt.text, None, service.limits)
        expanded = await service.expanded(prompt.content, context.client, "messages")
        special = prompt.add_special_tokens
        return Reply(await service.in_pool(_encoded, service, expanded, special))


def _encoded(service: Service, prompt: Expanded, add_special_tokens: bool) -> Raw:
    # Encoded off the event loop, as it may be long.
    tokens = simple_tokens(service, prompt, add_special_tokens=add_special_tokens)
    return Raw(encode(ChatTokenizeResponse(tokens, prompt.text)))


OPERATION = Post(
    path="/chat_tokenize",
    tag="tokenize",
    summary="The prompt of a chat, and its tokens",
    handler=chat_tokenize,
    body=JsonBody(ChatRequest),
    reply=(ChatTokenizeResponse,),
    generates=False,
    keyed_in_tgi=False,
)
