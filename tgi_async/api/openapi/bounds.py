"""Bounds of fields in the OpenAPI document that are checked after decoding.

The messages for what is out of them are TGI's, which decoding by a bounded type would not give.
"""

from __future__ import annotations

from typing import Any

from tgi_async.api.limits import Limits
from tgi_async.api.parameters import MAX_TEMPERATURE, PENALTY_RANGE

Json = dict[str, Any]


def set_bounds(components: dict[str, Json], limits: Limits) -> None:
    """Add the bounds to the schemas of requests."""
    least, most = PENALTY_RANGE
    share: Json = {"exclusiveMinimum": 0, "exclusiveMaximum": 1}
    penalty: Json = {"minimum": -2, "maximum": 2}
    seed: Json = {"minimum": limits.dialect.least_seed, "maximum": 2**64 - 1}
    bounds: dict[str, Json] = {
        "best_of": {"maximum": limits.max_best_of},
        "temperature": {"exclusiveMinimum": 0, "maximum": MAX_TEMPERATURE},
        "repetition_penalty": {"minimum": least, "maximum": most},
        "frequency_penalty": penalty,
        "top_k": {"minimum": 1},
        "top_p": share,
        "typical_p": share,
        "min_p": {"minimum": 0, "maximum": 1},
        "max_new_tokens": {"minimum": 1},
        "truncate": {"minimum": 1, "maximum": limits.max_input_tokens},
        "seed": seed,
        "top_n_tokens": {"maximum": limits.max_top_n_tokens},
    }
    for name in ("GenerateParameters", "VertexParameters"):
        for field, schema in components[name]["properties"].items():
            if field in bounds:
                _bound(schema, bounds[field])
            if field == "stop":
                _bound_stop(schema, limits)
    for name in ("ChatRequest", "CompletionRequest"):
        fields = components[name]["properties"]
        _bound(fields["temperature"], {"minimum": 0, "maximum": MAX_TEMPERATURE})
        _bound(fields["frequency_penalty"], penalty)
        _bound(fields["seed"], seed)
        _bound_stop(fields["stop"], limits)
        if not limits.dialect.reads_fields_of_tgi_only:
            _bound(fields["prompt_logprobs"], {"maximum": limits.max_top_n_tokens})
            _bound(fields["truncate_prompt_tokens"], {"maximum": limits.max_input_tokens})
            _bound(fields["presence_penalty"], penalty)
            _bound(fields["n"], {"minimum": 1, "maximum": limits.max_best_of})
    fields = components["ChatRequest"]["properties"]
    _bound(fields["max_completion_tokens"], {"minimum": 1})
    _bound(fields["top_logprobs"], {"maximum": limits.max_top_n_tokens})
    for name, needed in (
        ("JsonSchemaFormat", ("json_schema", "value", "schema")),
        ("RegexFormat", ("value", "pattern")),
    ):
        components[name]["anyOf"] = [{"required": [field]} for field in needed]
    for name in ("GenerateRequest", "CompatGenerateRequest", "VertexInstance"):
        components[name]["properties"]["inputs"]["minLength"] = 1


def _bound(schema: Json, bound: Json) -> None:
    for one in schema.get("anyOf", [schema]):
        if one["type"] in ("number", "integer"):
            one |= bound


def _bound_stop(schema: Json, limits: Limits) -> None:
    for one in schema["anyOf"]:
        if one["type"] == "array":
            one["maxItems"] = limits.max_stop_sequences
            one["items"]["minLength"] = 1
        elif one["type"] == "string":
            one["minLength"] = 1
