"""Settings of a Serve config file."""

from __future__ import annotations

from typing import Any

import pytest

from tgi_async.errors import StartError
from tgi_async.ray_serve.flags import settings_of


def test_args_are_flags_by_their_names() -> None:
    args = {
        "model-id": "a/b",
        "max_total_tokens": 512,
        "--trust-remote-code": True,
        "disable-grammar-support": False,
        "served-model-name": ["one", "two"],
        "kv-cache-memory": 10_000_000,
    }
    found = settings_of(args, {})
    assert (found.model_id, found.max_total_tokens) == ("a/b", 512)
    assert found.kv_cache_memory == 10_000_000
    assert found.trust_remote_code
    assert not found.disable_grammar_support
    assert found.served_model_name == ("one", "two")


def test_variables_count_where_args_do_not_say() -> None:
    environment = {"MODEL_ID": "c/d", "DTYPE": "float32"}
    found = settings_of({"model-id": "a/b"}, environment)
    assert (found.model_id, found.dtype) == ("a/b", "float32")


def test_variables_of_a_server_of_its_own_do_not_count() -> None:
    environment = {
        "PORT": "80",
        "HOSTNAME": "127.0.0.1",
        "SSL_CERTFILE": "/none",
        "SHUTDOWN_DELAY": "nonsense",
        "NNODES": "2",
    }
    assert settings_of({}, environment) == settings_of({}, {})


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"modelid": "a/b"}, "'modelid' in args is no flag .* Did you mean 'model-id'?"),
        ({"zzz": 1}, "'zzz' in args is no flag .* `tgi-async serve --help` lists them."),
        ({"port": 80}, "'port' in args has no effect under Ray Serve. Use `http_options: .port"),
        ({"root-path": "/x"}, "Use `route_prefix` of the application"),
        ({"nnodes": 2}, "Use `num_replicas` in the config"),
        ({"ssl-certfile": "a"}, "Use a proxy with TLS in front of Serve instead"),
        ({"model-id": None}, "'model-id' in args must be a text, a number, true or false. Given"),
        ({"model-id": ["a"]}, "'model-id' in args must be a text"),
        ({"served-model-name": [{}]}, "or a list of texts. Given: ....."),
        ({"model-id": "a", "model_id": "b"}, "is in args twice"),
        ({"max-total-tokens": "many"}, "--max-total-tokens must be a whole number. Given: 'many'"),
        ({"lora-adapters": "x"}, "--lora-adapters asks for .*, which is not built yet"),
        ({"ssl-keyfile-password": "x"}, "is no flag"),
    ],
)
def test_what_is_wrong_is_named(args: dict[str, Any], message: str) -> None:
    with pytest.raises(StartError, match=message):
        settings_of(args, {})
