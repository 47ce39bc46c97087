from __future__ import annotations

import pytest

from tgi_async.errors import (
    GenerationError,
    Overloaded,
    ServerError,
    TemplateError,
    ValidationError,
)
from tgi_async.telemetry.failure import MOST_CHARACTERS, reason_of
from tgi_async.text.chat_renderer import Renderer

SECRET = "what nobody else may read"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (Overloaded(), "Model is overloaded"),
        (ValidationError("`n` must be > 0"), "Input validation error: `n` must be > 0"),
        (GenerationError("a\nb"), "Request failed during generation: Server error: a"),
        (ServerError(""), "ServerError"),
    ],
)
def test_an_error_is_reported_as_to_the_client_in_one_line(error: Exception, said: str) -> None:
    assert reason_of(error) == said


def test_a_long_message_is_cut() -> None:
    assert len(reason_of(ServerError("x" * 1000))) == MOST_CHARACTERS


def test_what_a_terminal_would_obey_is_escaped() -> None:
    said = reason_of(ServerError("no tool \x1b[2J\x00\u202e\x9b1m é"))
    assert said == "no tool \\x1b[2J\\x00\\u202e\\x9b1m é"


def test_the_words_of_a_library_are_not_reported() -> None:
    error = ValidationError(f"tokenizer error: {SECRET}")
    error.__cause__ = KeyError(SECRET)
    assert reason_of(error) == "ValidationError from KeyError"


@pytest.mark.parametrize(
    "template",
    [
        "{{ raise_exception('no ' + messages[0].content) }}",
        "{{ messages[0].content | int + messages[0].content }}",
        "{{ {}[messages[0].content].x }}",
    ],
)
def test_what_a_template_says_of_a_message_is_not_reported(template: str) -> None:
    renderer = Renderer({"default": template}, {})
    with pytest.raises(TemplateError) as raised:
        renderer.render([{"role": "user", "content": SECRET}])
    # The process that renders returns the message alone.
    said = reason_of(TemplateError(str(raised.value).removeprefix(TemplateError.prefix)))
    assert said == "Template error (in <string>:1); only the client gets the full message"


def test_a_template_that_is_missing_has_no_place() -> None:
    said = reason_of(TemplateError("template not found"))
    assert said == "Template error; only the client gets the full message"
