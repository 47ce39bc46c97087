"""OpenAI's older form of tools: `functions`, `function_call`, messages of the role `function`."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import structs

from tgi_async.api.chat.schema import ChatRequest, MessageBody
from tgi_async.api.chat.tool_schema import FunctionName, MessageToolCall, NamedTool, Tool
from tgi_async.errors import ToolError


def with_tools(body: ChatRequest) -> ChatRequest:
    """Return the body with its functions as tools, of which one may be called at a time.

    Raises:
        ToolError: it has both, or wants a function called and has none.
    """
    if body.functions is None:
        if isinstance(body.function_call, FunctionName):
            raise ToolError("`function_call` wants a call, and there are no `functions` to call")
        return body
    if body.tools is not None:
        raise ToolError("`functions` is the older form of `tools`. Send one of them")
    called = body.function_call
    return structs.replace(
        body,
        tools=[Tool(type="function", function=function) for function in body.functions],
        tool_choice=called if isinstance(called, str | None) else NamedTool(name=called.name),
        parallel_tool_calls=False,
    )


def with_calls(messages: Sequence[MessageBody]) -> list[MessageBody]:
    """Return the messages with calls of functions, and their results, as those of tools.

    The older form has no ids, so these are made: nine letters and digits, as some templates want.
    """
    made: list[MessageBody] = []
    last: str | None = None
    for place, message in enumerate(messages):
        if message.function_call is not None and not message.tool_calls:
            last = f"call{place % 100_000:05d}"
            call = MessageToolCall(id=last, type="function", function=message.function_call)
            message = structs.replace(message, tool_calls=[call])
        elif message.role == "function":
            message = structs.replace(
                message, role="tool", tool_call_id=message.tool_call_id or last
            )
        made.append(message)
    return made
