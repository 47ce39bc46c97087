"""The application over an engine whose texts depend on the seed."""

from __future__ import annotations

import random
from functools import cache
from typing import Any

from starlette.applications import Starlette

from tests.api.conftest import Settings
from tests.api.tiny_tokenizer import tiny_tokenizer
from tests.doubles.seeded_engine import Script, SeededEngine
from tgi_async.api.app import create_app
from tgi_async.telemetry.metrics import Metrics
from tgi_async.text.chat import ChatTemplate

TEMPLATE = (
    '{% if tools %}Call them in <tool_call> with "name":{% for tool in tools %}{{ tool | tojson }}'
    "{% endfor %}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "<|im_end|>\n{% endfor %}<|im_start|>assistant\n{# <think> </think> #}"
)


@cache
def template() -> ChatTemplate:
    """One for all, for it has a process."""
    return ChatTemplate(TEMPLATE, {})


def replica(
    script: Script,
    dice: random.Random | None = None,
    window: int = 60,
    *,
    chats: bool = True,
    **settings: Any,
) -> Starlette:
    """An application, with its engine and its streams in `state`."""
    tokenizer = tiny_tokenizer()
    engine = SeededEngine(tokenizer, script, dice or random.Random(1))
    limits = Settings(
        max_total_tokens=2000,
        max_input_tokens=1000,
        payload_limit=10**6,
        resume_window=window,
        **settings,
    ).limits
    app = create_app(
        engine=engine,
        tokenizer=tokenizer,
        chat_template=template() if chats else None,
        limits=limits,
        metrics=Metrics(max_input_tokens=1000, max_total_tokens=2000),
    )
    app.state.engine = engine
    return app
