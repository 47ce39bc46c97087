"""Fields of other servers that have no effect here: harmless, refused, or reported as ignored.

docs/fields.md lists them; a test holds it to these lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from tgi_async.api.unknown_fields import Unknown
from tgi_async.errors import ValidationError

HARMLESS: Mapping[str, tuple[str, ...]] = {
    "": (
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "prediction",
        "request_id",
        "rid",
        "session_id",
        "cache_prompt",
        "cache_control",
        "custom_labels",
        "stream_interval",
        "spaces_between_special_tokens",
        "guided_decoding_backend",
        "options",
    ),
    "messages": ("annotations", "cache_control", "provider_specific_fields"),
    "messages.content": ("annotations", "cache_control"),
    "messages.tool_calls": ("index", "provider_specific_fields"),
    "tools": ("cache_control",),
    "tools.function": ("cache_control",),
    "stream_options": ("include_obfuscation",),
}
"""Fields that do not change the text, by the object that they are in. They are not reported."""


class UnsupportedField(NamedTuple):
    """Values with which a field asks for nothing, and a sentence on what to send instead."""

    neutral: tuple[Any, ...] = ()
    instead: str = ""


_BEAMS = UnsupportedField((1,), "`best_of` of /v1/completions takes the likeliest of several texts")
_GRAMMAR = "`guided_choice` and `guided_regex` constrain the text"
_MORE_SAMPLING = "Sampling is steered by `temperature`, `top_p`, `top_k`, `min_p` and `typical_p`"
_REPETITION = "`repetition_penalty`, `frequency_penalty` and `presence_penalty` are supported"

REFUSED: Mapping[str, UnsupportedField] = {
    "use_beam_search": _BEAMS._replace(neutral=(False,)),
    "num_beams": _BEAMS,
    "beam_width": _BEAMS,
    "num_beam_groups": _BEAMS,
    "diversity_penalty": UnsupportedField((0,)),
    "length_penalty": UnsupportedField((1,)),
    "early_stopping": UnsupportedField((False,)),
    "num_return_sequences": UnsupportedField((1,), "`n` gives several choices"),
    "priority": UnsupportedField((0,)),
    "allowed_token_ids": UnsupportedField((), _GRAMMAR),
    "logits_processors": UnsupportedField(([],), _GRAMMAR),
    "logits_processor": UnsupportedField(([],), _GRAMMAR),
    "custom_logit_processor": UnsupportedField(([], ""), _GRAMMAR),
    "vllm_xargs": UnsupportedField(({},)),
    "grammar_lazy": UnsupportedField(
        (False,), "`structural_tag` holds parts of a text to a grammar"
    ),
    "num_predict": UnsupportedField((-1,), "`max_tokens` bounds a text"),
    "stop_regex": UnsupportedField(([], ""), "`stop` takes texts"),
    "thinking_token_budget": UnsupportedField(
        (-1,), "`max_tokens` bounds thoughts and answer together"
    ),
    "thinking_budget": UnsupportedField(
        (-1,), "`chat_template_kwargs` takes it where a template reads it"
    ),
    "repetition_detection": UnsupportedField(({},)),
    "watermarking": UnsupportedField((False,), "`watermark` is supported"),
    "no_repeat_ngram_size": UnsupportedField((0,), _REPETITION),
    "encoder_no_repeat_ngram_size": UnsupportedField((0,), _REPETITION),
    "encoder_repetition_penalty": UnsupportedField((1,), _REPETITION),
    "repeat_penalty": UnsupportedField((1,), _REPETITION),
    "penalty_alpha": UnsupportedField((0,)),
    "guidance_scale": UnsupportedField((0, 1)),
    "cfg_scale": UnsupportedField((0, 1)),
    "negative_prompt": UnsupportedField(("",)),
    "mirostat": UnsupportedField((0, False), _MORE_SAMPLING),
    "mirostat_mode": UnsupportedField((0,), _MORE_SAMPLING),
    "dry_multiplier": UnsupportedField((0,), _REPETITION),
    "xtc_probability": UnsupportedField((0,), _MORE_SAMPLING),
    "dynatemp_range": UnsupportedField((0,), _MORE_SAMPLING),
    "dynamic_temperature": UnsupportedField((False,), _MORE_SAMPLING),
    "smoothing_factor": UnsupportedField((0,), _MORE_SAMPLING),
    "tfs": UnsupportedField((1,), _MORE_SAMPLING),
    "tfs_z": UnsupportedField((1,), _MORE_SAMPLING),
    "top_a": UnsupportedField((0,), _MORE_SAMPLING),
    "top_n_sigma": UnsupportedField((0, -1), _MORE_SAMPLING),
    "epsilon_cutoff": UnsupportedField((0,), _MORE_SAMPLING),
    "eta_cutoff": UnsupportedField((0,), _MORE_SAMPLING),
    "min_keep": UnsupportedField((0, 1), _MORE_SAMPLING),
    "temperature_last": UnsupportedField((False,), _MORE_SAMPLING),
    "samplers": UnsupportedField(([],), _MORE_SAMPLING),
    "n_indent": UnsupportedField((0,)),
    "t_max_predict_ms": UnsupportedField((0, -1), "`max_tokens` bounds a text"),
    "lora": UnsupportedField(([],)),
    "lora_path": UnsupportedField(("", [])),
    "lora_request": UnsupportedField(({},)),
    "adapter_id": UnsupportedField(("",)),
    "prompt_embeds": UnsupportedField(),
    "input_embeds": UnsupportedField(),
    "input_ids": UnsupportedField((), "`prompt` of /v1/completions takes token ids"),
    "chat_template": UnsupportedField(
        (), "A template is a program; start the server with one (--tokenizer-config-path)"
    ),
    "echo": UnsupportedField((False,), "/v1/completions can echo its prompt"),
    "best_of": UnsupportedField((0, 1), "/v1/completions has it"),
    "modalities": UnsupportedField(([], ["text"])),
    "audio": UnsupportedField(),
    "web_search_options": UnsupportedField(),
}
"""Fields of the OpenAI routes that would change the text and are not supported."""

SETTINGS_OF_REFUSED = frozenset(
    {
        "mirostat_tau",
        "mirostat_eta",
        "dry_base",
        "dry_allowed_length",
        "dry_penalty_last_n",
        "dry_range",
        "dry_sequence_breakers",
        "xtc_threshold",
        "dynatemp_exponent",
        "dynatemp_low",
        "dynatemp_high",
        "smoothing_curve",
        "repeat_last_n",
        "grammar_triggers",
        "grammar_trigger_words",
        "watermarking_key",
    }
)
"""Fields that only modify one that is refused unless it is off."""


def ignored(unknown: Unknown) -> list[str]:
    """Return the paths of the fields to report as having no effect."""
    return [path for path, value in unknown.items() if not _asks_nothing(path, value)]


def refuse_unsupported(unknown: Unknown, ignored_names: list[str]) -> None:
    """Refuse a field that would change the text of an OpenAI route.

    `ignored_names` loses the fields that are refused: they are not ignored.

    Raises:
        ValidationError: it names the first such field.
    """
    for path, value in unknown.items():
        refusal = REFUSED.get(path)
        if refusal is None or _is_one_of(value, refusal.neutral):
            continue
        ignored_names[:] = [name for name in ignored_names if name not in REFUSED]
        instead = f" {refusal.instead}." if refusal.instead else ""
        neutral = [msgspec.json.encode(one).decode() for one in refusal.neutral[:1]]
        off = "".join(f", or send {one}" for one in neutral)
        raise ValidationError(
            f"`{path}` is not supported by this server.{instead} Remove it from the request{off}"
        )


def _asks_nothing(path: str, value: bytes) -> bool:
    place, _, name = path.rpartition(".")
    if name in HARMLESS.get(place, ()) or path in SETTINGS_OF_REFUSED:
        return True
    refusal = REFUSED.get(path)
    return refusal is not None and _is_one_of(value, refusal.neutral)


def _is_one_of(value: bytes, neutral: tuple[Any, ...]) -> bool:
    """Return whether the value is one of these."""
    try:
        given = msgspec.json.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError):  # skipped values are not compared closely
        return False
    # True is not equal to 1 here.
    return any(isinstance(given, bool) == isinstance(one, bool) and given == one for one in neutral)
