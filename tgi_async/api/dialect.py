"""All differences of the API from TGI, in one place. `--strict-tgi` chooses TGI's behaviour for
each."""

from __future__ import annotations

from dataclasses import dataclass

from tgi_async.generation import FinishReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """One field for each difference. The defaults are this server's own; docs/differences.md says
    why.

    "The OpenAI routes" are `/v1/chat/completions` and `/v1/completions`.
    """

    # How requests are read.
    reads_fields_of_tgi_only: bool = False
    """The OpenAI routes and `/vertex` ignore every field that TGI ignores, and report it."""
    reads_respelled_numbers: bool = True
    """The OpenAI routes take numbers such as `"0.7"`, and `256.0` for a whole one."""
    reads_neutral_values: bool = True
    """The OpenAI routes take values that turn a parameter off: `top_p` 1, `max_tokens` -1. `top_p`
    0 is greedy."""
    recommends_sampling: bool = True
    """Parameters that a request of the OpenAI routes leaves unset are the model's recommended
    ones."""
    tokenizes_chats: bool = True
    """`/tokenize` takes vLLM's bodies too."""
    least_seed: int = -(2**63)
    allows_empty_suffix: bool = True
    allows_empty_chat: bool = False
    begins_chats: bool = True
    """A chat with a model that takes images gets the tokenizer's special tokens where its template
    does not write the first one, as in transformers' processors."""

    # How texts are constrained and shown.
    calls_tools_like_tgi: bool = False
    """Each answer to a chat with tools is constrained to one call, possibly of `no_tool`. Other
    answers are not searched for calls."""
    shows_stop_sequences: bool = False
    """Texts of the OpenAI routes always have the stop sequence that ended them."""
    shows_prompt_before_grammar: bool = False
    """`/` shows the prompt by default, also before a text that follows a grammar."""

    # Further details of replies.
    names_stop_sequences: bool = False
    """The finish reason `stop_sequence` is not renamed to `stop`."""
    shows_usage_details: bool = True
    shows_model_details: bool = True
    """`/v1/models` reports the start time and the maximum length."""
    shows_role_once: bool = True
    """Only the first chunk of a chat has the role."""
    shows_reason_at_end_only: bool = True
    """In streams of `/v1/completions` the reason is null until the end; in TGI it is empty, and at
    the end TGI's own."""

    # Errors.
    answers_errors_like_openai: bool = True
    """Errors below `/v1` are OpenAI's objects."""
    begins_streams_late: bool = True
    """Errors before the first event of the OpenAI routes' streams have their own status; in TGI
    they are events."""
    explains_errors: bool = True
    """Messages name the limit, the flag that sets it, and why a text failed."""
    names_fields_as_sent: bool = True
    """Messages name the fields of the OpenAI routes as the client calls them."""
    words_grammar_errors_like_tgi: bool = False

    # Which origins may call.
    guards_all_work: bool = True
    """`/chat_tokenize` and KServe's `infer` need the API key too."""
    folds_case_of_key: bool = False
    """The API key may be in any case."""

    def finish_reason(self, reason: FinishReason) -> str:
        """Return OpenAI's finish reason: `stop` for an end-of-text token."""
        if reason == "length" or (reason == "stop_sequence" and self.names_stop_sequences):
            return reason
        return "stop"


OURS = Dialect()

TGI = Dialect(
    reads_fields_of_tgi_only=True,
    reads_respelled_numbers=False,
    reads_neutral_values=False,
    recommends_sampling=False,
    tokenizes_chats=False,
    least_seed=0,
    allows_empty_suffix=False,
    allows_empty_chat=True,
    begins_chats=False,
    calls_tools_like_tgi=True,
    shows_stop_sequences=True,
    shows_prompt_before_grammar=True,
    names_stop_sequences=True,
    shows_usage_details=False,
    shows_model_details=False,
    shows_role_once=False,
    shows_reason_at_end_only=False,
    answers_errors_like_openai=False,
    begins_streams_late=False,
    explains_errors=False,
    names_fields_as_sent=False,
    words_grammar_errors_like_tgi=True,
    guards_all_work=False,
    folds_case_of_key=True,
)


def dialect_of(*, strict_tgi: bool) -> Dialect:
    """Return the dialect of a server with this setting."""
    return TGI if strict_tgi else OURS
