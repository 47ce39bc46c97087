"""`/chat_tokenize`."""

from __future__ import annotations

from msgspec import Struct

from tgi_async.api.schemas.generate import SimpleToken


class ChatTokenizeResponse(Struct, frozen=True):
    """The prompt of a chat and its tokens."""

    tokenize_response: list[SimpleToken]
    templated_text: str
