"""`/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from msgspec import UNSET, Meta, Struct, UnsetType, structs

from tgi_async.api.chat.tool_schema import (
    CalledFunction,
    FunctionCall,
    FunctionCallDelta,
    FunctionDefinition,
    FunctionName,
    MessageToolCall,
    Tool,
    ToolCall,
    ToolCallDelta,
    ToolChoice,
)
from tgi_async.api.field_names import OF_TGI, FieldNames
from tgi_async.api.limits import Limits
from tgi_async.api.openai.reply_schema import PromptLogprob, Usage
from tgi_async.api.openai.schema import OpenAIRequest
from tgi_async.api.parameters import U32

READ_BY_TGI = frozenset(
    {
        "messages",
        "model",
        "frequency_penalty",
        "logprobs",
        "top_logprobs",
        "max_tokens",
        "max_completion_tokens",
        "presence_penalty",
        "stop",
        "stream",
        "stream_options",
        "seed",
        "temperature",
        "top_p",
        "tools",
        "tool_prompt",
        "tool_choice",
        "response_format",
    }
)


class TextChunk(Struct, frozen=True, tag_field="type", tag="text"):
    text: str


class InputTextChunk(TextChunk, frozen=True, tag="input_text"):
    """A text part of the user in OpenAI's Responses API."""


class OutputTextChunk(TextChunk, frozen=True, tag="output_text"):
    """A text part of the assistant in OpenAI's Responses API."""


class RefusalChunk(Struct, frozen=True, tag_field="type", tag="refusal"):
    """The assistant's refusal to answer."""

    refusal: str


class ThoughtText(Struct, frozen=True):
    """A part of Mistral's list, which is always text."""

    text: str
    type: Literal["text"] = "text"


class ThinkingChunk(Struct, frozen=True, tag_field="type", tag="thinking"):
    """Reasoning of the assistant: a text, or Mistral's list of parts."""

    thinking: str | list[ThoughtText]

    @property
    def text(self) -> str:
        if isinstance(self.thinking, str):
            return self.thinking
        return "".join(part.text for part in self.thinking)


class ReasoningChunk(Struct, frozen=True, tag_field="type", tag="reasoning"):
    """Reasoning under another name."""

    text: str


class ImageUrl(Struct, frozen=True):
    """`detail` is auto, low or high: how finely the image is looked at, where the model can."""

    url: str
    detail: str | None = None


class ImageChunk(Struct, frozen=True, tag_field="type", tag="image_url"):
    """An image; some clients send its URL alone."""

    image_url: ImageUrl | str

    @property
    def given(self) -> ImageUrl:
        return self.image_url if isinstance(self.image_url, ImageUrl) else ImageUrl(self.image_url)

    @property
    def place(self) -> str:
        """Where its URL is in the part."""
        return "image_url.url" if isinstance(self.image_url, ImageUrl) else "image_url"


class InputImageChunk(Struct, frozen=True, tag_field="type", tag="input_image"):
    """An image in OpenAI's Responses API."""

    image_url: str
    detail: str | None = None

    @property
    def given(self) -> ImageUrl:
        return ImageUrl(self.image_url, self.detail)

    @property
    def place(self) -> str:
        """Where its URL is in the part."""
        return "image_url"


class BareImageChunk(Struct, frozen=True, tag_field="type", tag="image"):
    """An image as transformers has it in messages, under one of two names."""

    image: str | None = None
    url: str | None = None

    @property
    def given(self) -> ImageUrl:
        return ImageUrl(self.image or self.url or "")

    @property
    def place(self) -> str:
        """Where its URL is in the part."""
        return "image" if self.url is None else "url"


AnyImageChunk = ImageChunk | InputImageChunk | BareImageChunk

Chunk = (
    TextChunk
    | InputTextChunk
    | OutputTextChunk
    | RefusalChunk
    | ThinkingChunk
    | ReasoningChunk
    | ImageChunk
    | InputImageChunk
    | BareImageChunk
)


class MessageBody(Struct, frozen=True, kw_only=True):
    """`function_call` is OpenAI's older form of `tool_calls`.

    What the assistant thought is in `reasoning_content`, `reasoning` or `thinking`, as the server
    that it comes from calls it, or in parts of the content.
    """

    role: str
    content: str | list[Chunk] | None = None
    name: str | None = None
    tool_call_id: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    function_call: CalledFunction | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None


class Thinking(Struct, frozen=True):
    """The form of GLM's, Kimi's and DeepSeek's own services."""

    type: Literal["enabled", "disabled"]


class Reasoning(Struct, frozen=True, kw_only=True):
    """OpenRouter's form."""

    effort: Annotated[str, Meta(max_length=64)] | float | None = None
    enabled: bool | None = None
    exclude: bool | None = None


class ChatRequest(OpenAIRequest, frozen=True, kw_only=True):
    """`tool_prompt` is TGI's: an instruction about the tools after the last message. `functions`
    and `function_call` are OpenAI's older form of `tools` and `tool_choice`.

    The fields after them are for the chat template, under the names that vLLM, transformers and
    makers of models have.
    """

    messages: list[MessageBody]
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    tools: list[Tool] | None = None
    tool_choice: ToolChoice | None = None
    tool_prompt: str | None = None
    parallel_tool_calls: bool | None = None
    functions: list[FunctionDefinition] | None = None
    function_call: str | FunctionName | None = None
    documents: list[dict[str, Any]] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Annotated[str, Meta(max_length=64)] | float | None = None
    enable_thinking: bool | None = None
    thinking: Thinking | bool | None = None
    reasoning: Reasoning | None = None
    include_reasoning: bool | None = None

    @property
    def shows_thoughts(self) -> bool:
        """Whether the reply has the model's reasoning."""
        excluded = self.reasoning is not None and bool(self.reasoning.exclude)
        return self.include_reasoning is not False and not excluded

    def names(self, limits: Limits, form: str | None) -> FieldNames:
        """Return the client's names of the fields, `form` being that of the grammar; in TGI's
        messages, TGI's names."""
        if not limits.dialect.names_fields_as_sent:
            return OF_TGI
        return FieldNames(
            "messages", self.most_new_tokens_name, "top_logprobs", form or "response_format"
        )

    def as_tgi_reads_it(self) -> Self:
        """Return the same with the presence penalty as TGI reads it: a repetition penalty."""
        presence = self.presence_penalty
        return structs.replace(
            super().as_tgi_reads_it(),
            presence_penalty=None,
            repetition_penalty=None if presence is None else presence + 2.0,
        )

    @classmethod
    def read_by_tgi(cls) -> frozenset[str]:
        return READ_BY_TGI


class TopLogprob(Struct, frozen=True):
    """`bytes` is `token` in UTF-8."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(Struct, frozen=True):
    """The text that a token adds, which is empty while a character is incomplete."""

    token: str
    logprob: float | None
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class Logprobs(Struct, frozen=True):
    content: list[TokenLogprob]


class AssistantMessage(Struct, frozen=True):
    """`content` is null where there are calls and no text, and absent in TGI's form of that.

    `function_call` is the call where the request has `functions`.
    `tool_call_id` is in TGI's document; neither TGI nor this server sends it.
    """

    content: str | UnsetType | None = UNSET
    role: Literal["assistant"] = "assistant"
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET
    function_call: FunctionCall | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class ChatChoice(Struct, frozen=True, kw_only=True):
    index: int = 0
    message: AssistantMessage
    logprobs: Logprobs | None
    finish_reason: str


class AssistantDelta(Struct, frozen=True):
    """A piece of the message. The role comes once; clients concatenate the pieces."""

    content: str | UnsetType = UNSET
    role: Literal["assistant"] | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET
    function_call: FunctionCallDelta | UnsetType = UNSET
    tool_call_id: str | UnsetType = UNSET


class ChatDelta(Struct, frozen=True, kw_only=True):
    index: int = 0
    delta: AssistantDelta
    logprobs: Logprobs | None
    finish_reason: str | None


class ChatCompletion(Struct, frozen=True, kw_only=True):
    """`prompt_logprobs` are vLLM's, where asked for."""

    object: Literal["chat.completion"] = "chat.completion"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET


class ChatCompletionChunk(Struct, frozen=True, kw_only=True):
    """`prompt_logprobs` come with the first chunk of the first choice."""

    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatDelta]
    usage: Usage | None = None
    prompt_logprobs: list[dict[int, PromptLogprob] | None] | UnsetType = UNSET
