"""The server's settings, under TGI's names: flag, then environment variable, then default.

One table says everything: each field's flag is its name with dashes, its variable its name in upper
case. What TGI has and this server has not built is in `NOT_BUILT`, and refused by name.
"""

from __future__ import annotations

import argparse
import ipaddress
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from tgi_async.errors import StartError

log = logging.getLogger(__name__)

DTYPES = ("bfloat16", "float16", "float32")


def _option(
    default: Any,
    group: str,
    help: str,
    *,
    kind: type = str,
    least: int | None = None,
    most: int | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    metadata = {
        "group": group,
        "help": help,
        "kind": kind,
        "least": least,
        "most": most,
        "choices": choices,
    }
    return field(default=default, metadata=metadata)


MODEL, LIMITS, BATCHING, HTTP, OPERATION = (
    "model",
    "limits of a request",
    "batching and memory",
    "HTTP",
    "operation",
)
COUNT = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person set. None: found from the model or the machine at start."""

    model_id: str | None = _option(
        None, MODEL, "a Hub id or a local folder; default: SmolLM2-135M-Instruct, no network needed"
    )
    revision: str | None = _option(None, MODEL, "branch, tag or commit of a Hub model")
    dtype: str | None = _option(
        None, MODEL, "number format of weights and cache; default: bfloat16", choices=DTYPES
    )
    trust_remote_code: bool = _option(
        False, MODEL, "run Python code that comes with the model", kind=bool
    )
    huggingface_hub_cache: str | None = _option(None, MODEL, "folder of downloaded models")

    max_input_tokens: int | None = _option(
        None, LIMITS, "longest prompt; default: max-total-tokens - 1", kind=int, least=1
    )
    max_input_length: int | None = _option(
        None, LIMITS, "old name of max-input-tokens", kind=int, least=1
    )
    max_total_tokens: int | None = _option(
        None, LIMITS, "longest prompt and output together; default: the model's", kind=int, least=2
    )
    max_best_of: int = _option(2, LIMITS, "most sequences of `best_of`", kind=int, least=1)
    max_stop_sequences: int = _option(4, LIMITS, "most stop sequences", kind=int, least=0)
    max_top_n_tokens: int = _option(5, LIMITS, "most `top_n_tokens`", kind=int, least=0)
    max_client_batch_size: int = _option(
        4, LIMITS, "most prompts in one /v1/completions request", kind=int, least=1
    )

    max_concurrent_requests: int = _option(
        128, BATCHING, "requests served at once; more are told 429", kind=int, least=1
    )
    max_batch_size: int | None = _option(
        None, BATCHING, "rows of a step; default: max-concurrent-requests", kind=int, least=1
    )
    max_batch_prefill_tokens: int | None = _option(
        None,
        BATCHING,
        "prompt tokens of a step; default: 512 on a CPU, 4096 on a GPU",
        kind=int,
        least=1,
    )
    max_batch_total_tokens: int | None = _option(
        None, BATCHING, "tokens of the KV cache; default: what fits", kind=int, least=2
    )
    kv_cache_memory: int | None = _option(
        None,
        BATCHING,
        "bytes of the KV cache; default on a CPU: a third of the free memory, at most 4 GiB",
        kind=int,
        least=1,
        most=2**63 - 1,
    )
    validation_workers: int = _option(
        2, BATCHING, "threads that tokenize prompts and render chat templates", kind=int, least=1
    )

    hostname: str = _option("0.0.0.0", HTTP, "address to listen on")
    port: int = _option(3000, HTTP, "port to listen on", kind=int, least=0, most=65535)
    api_key: str | None = _option(None, HTTP, "key that requests must bear")
    cors_allow_origin: tuple[str, ...] = _option(
        (), HTTP, "origin that browsers may call from, repeatable; default: any", kind=tuple
    )
    payload_limit: int = _option(
        2_000_000, HTTP, "largest request body in bytes", kind=int, least=1
    )

    json_output: bool = _option(False, OPERATION, "log as JSON lines", kind=bool)
    graceful_termination_timeout: int = _option(
        90, OPERATION, "seconds that live requests get after SIGTERM", kind=int, least=0
    )

    def __post_init__(self) -> None:
        if self.max_input_tokens is not None and self.max_input_length is not None:
            raise StartError(
                "Both --max-input-tokens and --max-input-length were given; they are the same "
                "setting, so give only --max-input-tokens."
            )
        longest, total = self.input_limit, self.max_total_tokens
        if longest is not None and total is not None and longest >= total:
            raise StartError(
                f"--max-input-tokens must be less than --max-total-tokens. Given: {longest} and "
                f"{total}."
            )
        pool = self.max_batch_total_tokens
        if pool is not None and total is not None and total > pool:
            raise StartError(
                f"--max-total-tokens must be at most --max-batch-total-tokens. Given: {total} and "
                f"{pool}."
            )

    @property
    def input_limit(self) -> int | None:
        """`max_input_tokens`, under either name."""
        return self.max_input_tokens if self.max_input_tokens is not None else self.max_input_length


NOT_BUILT: dict[str, str] = {
    "sharded": "serving on several GPUs",
    "num_shard": "serving on several GPUs",
    "quantize": "quantization",
    "speculate": "speculative decoding",
    "kv_cache_dtype": "a KV cache of another dtype than the model's",
    "rope_scaling": "overriding the model's rope scaling",
    "rope_factor": "overriding the model's rope scaling",
    "lora_adapters": "LoRA adapters",
    "otlp_endpoint": "OpenTelemetry export",
    "tokenizer_config_path": "another tokenizer config than the model's",
    "cuda_memory_fraction": "sharing a GPU by fraction",
    "weights_cache_override": "another place of the weights; give --model-id a folder instead",
    "watermark_gamma": "other watermark parameters than 0.5 and 2.0",
    "watermark_delta": "other watermark parameters than 0.5 and 2.0",
}
"""Settings of TGI that are understood, but not built; and what they would do."""

HARMLESS = {"sharded": ("false",), "num_shard": ("1",), "cuda_memory_fraction": ("1", "1.0")}
"""Values of these that ask for nothing."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """One flag a setting, in groups; and those that will be refused, hidden."""
    groups = {name: parser.add_argument_group(name) for name in _groups()}
    for one in fields(Settings):
        meta = one.metadata
        names = [f"--{one.name.replace('_', '-')}"]
        if one.name == "port":
            names.insert(0, "-p")
        if one.name == "graceful_termination_timeout":
            names.insert(0, "-g")
        text = f"{meta['help']} [env {one.name.upper()}]"
        default = one.default
        if default not in (None, False, ()):
            text += f" [default {default}]"
        options: dict[str, Any] = {"dest": one.name, "default": None, "help": text}
        if meta["kind"] is bool:
            # `--flag`, and TGI's `--flag true`.
            options |= {"nargs": "?", "const": "true", "metavar": "BOOL"}
        elif meta["kind"] is tuple:
            options |= {"action": "append", "metavar": "ORIGIN"}
        else:
            options["metavar"] = "N" if meta["kind"] is int else "TEXT"
        groups[meta["group"]].add_argument(*names, **options)
    for name in NOT_BUILT:
        parser.add_argument(
            f"--{name.replace('_', '-')}", dest=name, nargs="?", const="", help=argparse.SUPPRESS
        )


def resolve(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Flags before variables before defaults. Raises StartError naming what is wrong."""
    for name, purpose in NOT_BUILT.items():
        for source, raw in _sources(name, given, environment):
            if raw.lower() not in HARMLESS.get(name, ()):
                raise StartError(
                    f"{source} asks for {purpose}, which is not built yet. Leave it out."
                )
    values: dict[str, Any] = {}
    for one in fields(Settings):
        for source, raw in _sources(one.name, given, environment):
            values[one.name] = _parse(source, raw, one.metadata)
            break
    host = environment.get("HOSTNAME")
    if host and given.get("hostname") is None and not _is_address(host):
        # Containers set HOSTNAME to the machine's name, which is no address to listen on.
        del values["hostname"]
    return Settings(**values)


def _sources(
    name: str, given: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    if given.get(name) is not None:
        yield f"--{name.replace('_', '-')}", given[name]
    elif environment.get(name.upper()):
        yield f"the environment variable {name.upper()}", environment[name.upper()]


def _parse(source: str, raw: str | Sequence[str], meta: Mapping[str, Any]) -> Any:
    if meta["kind"] is tuple:
        given = raw.split(",") if isinstance(raw, str) else raw
        return tuple(one.strip() for one in given if one.strip())
    assert isinstance(raw, str)
    if meta["kind"] is bool:
        if raw.lower() not in ("true", "false", "1", "0"):
            raise StartError(f"{source} must be true or false. Given: {raw!r}.")
        return raw.lower() in ("true", "1")
    if meta["kind"] is int:
        least, most = meta["least"], meta["most"] or COUNT
        try:
            number = int(raw)
        except ValueError:
            raise StartError(f"{source} must be a whole number. Given: {raw!r}.") from None
        if not least <= number <= most:
            raise StartError(f"{source} must be from {least} to {most}. Given: {number}.")
        return number
    if not raw:
        raise StartError(f"{source} must not be empty. Leave it out, or give it a value.")
    if meta["choices"] and raw not in meta["choices"]:
        raise StartError(f"{source} must be one of {', '.join(meta['choices'])}. Given: {raw!r}.")
    return raw


def _groups() -> list[str]:
    return list(dict.fromkeys(one.metadata["group"] for one in fields(Settings)))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
