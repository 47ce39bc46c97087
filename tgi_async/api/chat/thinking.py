"""Whether and how much a model should think: fields of several servers, for the chat template."""

from __future__ import annotations

from typing import Any

from tgi_async.api.chat.schema import ChatRequest, Thinking
from tgi_async.errors import ValidationError
from tgi_async.text.chat import ChatTemplate
from tgi_async.text.tools.templates import THINKING_VARIABLES

SWITCHES = ("enable_thinking", "thinking")
"""Variables with which templates turn thinking on and off."""


def thinking_variables(body: ChatRequest) -> dict[str, Any]:
    """Return variables for the template. An effort turns thinking on, "none" turns it off.

    Raises:
        ValidationError: two fields contradict each other.
    """
    given = _given(body)
    variables: dict[str, Any] = {}
    efforts = [(field, value) for field, value in given if not isinstance(value, bool)]
    for field, effort in efforts:
        if effort != efforts[0][1]:
            raise _contradiction(efforts[0][0], field)
        variables["reasoning_effort"] = effort
    turned = [
        (field, value if isinstance(value, bool) else value != "none") for field, value in given
    ]
    for field, on in turned:
        if on != turned[0][1]:
            raise _contradiction(turned[0][0], field)
        variables |= dict.fromkeys(SWITCHES, on)
    return variables


def unread_fields(template: ChatTemplate, body: ChatRequest) -> list[str]:
    """Return the fields about thinking whose variables the template does not read."""
    read = template.traits.thinking_variables
    kwargs = THINKING_VARIABLES.intersection(body.chat_template_kwargs or ())
    unread = [f"chat_template_kwargs.{name}" for name in sorted(kwargs - read)]
    for field, value in _given(body):
        variables = SWITCHES if isinstance(value, bool) else (*SWITCHES, "reasoning_effort")
        if not read.intersection(variables):
            unread.append(field)
    return unread


def _given(body: ChatRequest) -> list[tuple[str, bool | str | float]]:
    """Return the given fields, with how much to think or whether at all."""
    thinking, reasoning = body.thinking, body.reasoning
    if isinstance(thinking, Thinking):
        thinking = thinking.type == "enabled"
    found = [
        ("reasoning_effort", body.reasoning_effort),
        ("enable_thinking", body.enable_thinking),
        ("thinking", thinking),
        ("reasoning.effort", None if reasoning is None else reasoning.effort),
        ("reasoning.enabled", None if reasoning is None else reasoning.enabled),
    ]
    return [(field, value) for field, value in found if value is not None]


def _contradiction(field: str, other: str) -> ValidationError:
    return ValidationError(f"`{field}` and `{other}` contradict each other. Send one of them")
