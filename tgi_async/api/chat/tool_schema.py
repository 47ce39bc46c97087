"""Tools of a chat, the choice among them, and calls of them.

What a template is shown is a TypedDict: templates may show it as JSON, with its fields in the order
in which they came. Fields that are not named here are left out, as in TGI.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NotRequired, TypedDict

from msgspec import UNSET, Meta, Struct, UnsetType

FunctionDefinition = TypedDict(
    "FunctionDefinition",
    {
        "name": str,
        "description": NotRequired[str | None],
        "parameters": NotRequired[Any],
        "arguments": NotRequired[Any],
        "strict": NotRequired[bool | None],
        "return": NotRequired[Any],
    },
)
"""`parameters` is a JSON Schema of them; `arguments` is TGI's name for it. `strict` is OpenAI's,
`return` is what transformers makes of a Python function's annotation."""


class Tool(TypedDict):
    type: str
    function: FunctionDefinition


class CalledFunction(TypedDict):
    """`arguments` is a JSON text in OpenAI's API, an object elsewhere; TGI takes `parameters`
    too."""

    name: str
    arguments: NotRequired[Any]
    description: NotRequired[str | None]


class MessageToolCall(TypedDict):
    """A call in an earlier message. Some templates want an `id`, and say so.

    A field that is null is one that is left out.
    """

    id: NotRequired[str | None]
    type: NotRequired[str | None]
    function: CalledFunction


class FunctionName(Struct, frozen=True):
    name: str


class NamedTool(Struct, frozen=True, kw_only=True, tag_field="type", tag="function"):
    """A function by its name, which is in `function`, or as in the Responses API beside it."""

    function: FunctionName | UnsetType = UNSET
    name: str | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.function is UNSET and self.name is UNSET:
            raise ValueError("Object missing required field `function`")

    @property
    def wanted(self) -> str:
        """The function's name."""
        if self.function is not UNSET:
            return self.function.name
        assert self.name is not UNSET
        return self.name


class AllowedToolsConfig(Struct, frozen=True, kw_only=True):
    """Which tools may be called, and whether one has to be."""

    mode: Literal["auto", "required"]
    tools: list[NamedTool]


class AllowedTools(Struct, frozen=True, kw_only=True, tag_field="type", tag="allowed_tools"):
    """Some of the tools; the others are not shown. The Responses API has the fields of
    `allowed_tools` here."""

    allowed_tools: AllowedToolsConfig | UnsetType = UNSET
    mode: Literal["auto", "required"] | UnsetType = UNSET
    tools: list[NamedTool] | UnsetType = UNSET

    def __post_init__(self) -> None:
        if self.allowed_tools is UNSET and (self.mode is UNSET or self.tools is UNSET):
            raise ValueError("Object missing required field `allowed_tools`")

    @property
    def wanted(self) -> AllowedToolsConfig:
        """The fields, in either form."""
        if self.allowed_tools is not UNSET:
            return self.allowed_tools
        assert self.mode is not UNSET
        assert self.tools is not UNSET
        return AllowedToolsConfig(mode=self.mode, tools=self.tools)


class AnyTool(Struct, frozen=True, tag_field="type", tag="any"):
    """Anthropic's name for `required`; Mistral's is the text `any`."""


_WORDS = ["auto", "none", "required", "any"]
_NAME = {"type": "string", "description": "A function's name, as in TGI."}
ToolChoice = (
    Annotated[str, Meta(extra_json_schema={"anyOf": [{"enum": _WORDS}, _NAME]})]
    | NamedTool
    | AllowedTools
    | AnyTool
)


class FunctionCall(Struct, frozen=True, kw_only=True):
    """`arguments` is a text in JSON. `description` is TGI's, and always null."""

    description: str | UnsetType | None = UNSET
    name: str
    arguments: str


class ToolCall(Struct, frozen=True, kw_only=True):
    """A call in an answer."""

    id: str
    type: Literal["function"] = "function"
    function: FunctionCall


class FunctionCallDelta(Struct, frozen=True, kw_only=True):
    """A piece of `arguments`; the name comes once, and is null in TGI's other pieces."""

    name: str | UnsetType | None = UNSET
    arguments: str


class ToolCallDelta(Struct, frozen=True, kw_only=True):
    """A piece of the call with this `index`."""

    index: int
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET
    function: FunctionCallDelta
