"""Chat templates: render messages to a prompt, in processes with limits.

The server itself never compiles or runs a template: see `tgi_async.text.chat_process`.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from tgi_async import processes
from tgi_async.errors import TemplateError, ValidationError
from tgi_async.subprocess_pool.pool import ProcessEnded, ProcessPool
from tgi_async.text.chat_files import read_templates
from tgi_async.text.chat_forms import Message
from tgi_async.text.tokenizer import Tokenizer
from tgi_async.text.tools.templates import Traits

COMMAND = processes.command("tgi_async.text.chat_process")


class ChatTemplate:
    """The templates of one model. Thread-safe.

    `templates` is the source of the only one, or sources by name. `special_tokens` are variables of
    the template, by names such as `bos_token`. A template that cannot be compiled is an error of
    the requests that need it, not of the start.

    At most `n_processes` render at once; one that took more than `seconds` of processor time is
    ended, with its request alone. They are started when first needed.
    """

    def __init__(
        self,
        templates: str | Mapping[str, str],
        special_tokens: Mapping[str, str],
        *,
        n_processes: int = 2,
        seconds: float = 2.0,
    ) -> None:
        named = {"default": templates} if isinstance(templates, str) else dict(templates)
        start = {"templates": named, "special_tokens": dict(special_tokens), "seconds": seconds}
        self.digest = blake2b(json.dumps([named, dict(special_tokens)]).encode()).digest()
        """Of what it renders by."""
        self._seconds = seconds
        self._pool = ProcessPool(
            COMMAND, json.dumps(start).encode(), n_processes=n_processes, name="chat"
        )
        self.traits = Traits.of(named.values(), self._rendered)
        """What the templates show of the tool format."""
        self.threads = self._pool.threads
        """Threads to call `render` in, so that it does not hold up those that tokenize."""

    @classmethod
    def from_folder(cls, folder: Path, special_tokens: Mapping[str, str]) -> ChatTemplate | None:
        """Return the model's templates, or None if it has none.

        Raises:
            StartError: a file that may hold them cannot be read.
        """
        templates = read_templates(folder)
        return cls(templates, special_tokens) if templates else None

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        variables: Mapping[str, Any] | None = None,
        add_generation_prompt: bool | None = None,
        continue_final_message: bool | None = None,
    ) -> str:
        """Return the prompt for an answer to `messages`; blocks, for a bounded time.

        `variables` are further ones of the template; it must read them. See `Renderer.render` for
        the two flags: by default, an assistant's text at the end is continued.

        Raises:
            TemplateError: the template refuses these messages, cannot show them, or takes too long.
            ValidationError: `variables` has a name that is not allowed.
        """
        job = {
            "messages": list(messages),
            "tools": tools,
            "documents": documents,
            "variables": variables,
            "add_generation_prompt": add_generation_prompt,
            "continue_final_message": continue_final_message,
        }
        try:
            line = json.dumps(job).encode()
        except (ValueError, RecursionError) as error:  # an integer too long, or nested too deep
            raise TemplateError(f"the messages cannot be shown: {error}") from error
        try:
            answer = json.loads(self._pool.ask(line))
        except ProcessEnded as ended:
            raise TemplateError(self._why(ended)) from ended
        if "text" in answer:
            text: str = answer["text"]
            return text
        kind = ValidationError if answer["error"] == "ValidationError" else TemplateError
        raise kind(answer["message"])

    def _rendered(self, messages: Sequence[Message], **settings: Any) -> str | None:
        """Return the prompt, or None where the template refuses the messages."""
        try:
            return self.render(messages, **settings)
        except (TemplateError, ValidationError):
            return None

    def ends(self, tokenizer: Tokenizer) -> list[int]:
        """Return the special tokens that end an answer: those that the templates write behind it.

        One that a template also writes within a turn, behind the thoughts say, ends nothing. Blocks
        for a bounded time; templates that fail have no ends, and tell requests why they fail.
        """
        try:
            answer = json.loads(self._pool.ask(b'{"endings": true}'))
        except ProcessEnded:
            return []
        found: dict[int, None] = {}
        for ending, within in answer.get("endings", []):
            end = tokenizer.mark_at_start(ending)
            if end is not None and end not in tokenizer.encode(within, add_special_tokens=False):
                found[end] = None
        return list(found)

    def _why(self, ended: ProcessEnded) -> str:
        if ended.status == -signal.SIGPROF:
            return (
                f"rendering took more than {self._seconds:g} seconds of processor time. "
                "Send fewer or shorter messages"
            )
        return f"rendering ended with status {ended.status}"

    def close(self) -> None:
        """End the processes."""
        self._pool.close()
