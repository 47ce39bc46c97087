"""Settings out of the `args` of a Serve config file, and the environment."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from tgi_async.arguments import resolve
from tgi_async.errors import StartError
from tgi_async.settings import SECRETS, Settings
from tgi_async.settings_tgi import NOT_BUILT, OF_SEVERAL_NODES, WITHOUT_MEANING

# Serve's own would be spoken by the replicas alone, and its HAProxy reaches them without.
TLS = "a proxy with TLS in front of Serve"
OF_SERVE = {
    "hostname": "`http_options: {host: ...}` in the config file",
    "port": "`http_options: {port: ...}` in the config file",
    "unix_socket": "`http_options` in the config file, which has addresses only",
    "ssl_certfile": TLS,
    "ssl_keyfile": TLS,
    "root_path": "`route_prefix` of the application in the config file",
    **dict.fromkeys(("nnodes", *OF_SEVERAL_NODES), "`num_replicas` in the config file"),
    "shutdown_delay": "the environment variable RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S",
}
"""Settings that are Serve's own business, and where Serve has them."""
DOES_NOT_COUNT = {name.upper() for name in (*OF_SERVE, *SECRETS)}
"""Variables of the same: images and platforms set some of them, for servers without Serve."""


def settings_of(args: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings: of `args`, then of the environment, then the defaults.

    Raises StartError naming what is wrong.
    """
    counts = {name: text for name, text in environment.items() if name not in DOES_NOT_COUNT}
    return resolve(given_by(args), counts)


def given_by(args: Mapping[str, Any]) -> dict[str, str | list[str]]:
    """Return the settings that `args` gives, as their flags would give them: texts, or lists of
    them. Raises StartError for names that are no flags, and for values that no flag has."""
    allowed = {one.name: one.metadata["kind"] for one in fields(Settings)}
    allowed |= dict.fromkeys((*WITHOUT_MEANING, *NOT_BUILT), str)
    given: dict[str, str | list[str]] = {}
    for key, value in args.items():
        name = str(key).removeprefix("--").replace("-", "_")
        if name in OF_SERVE:
            raise StartError(
                f"{key!r} in args has no effect under Ray Serve. Use {OF_SERVE[name]} instead."
            )
        if name not in allowed or name in SECRETS:
            raise StartError(f"{key!r} in args is no flag of tgi-async serve.{_meant(name)}")
        if name in given:
            raise StartError(f"{key!r} is in args twice, with - and with _. Give it once.")
        given[name] = _text(key, value, listed=allowed[name] is tuple)
    return given


def _text(key: str, value: Any, *, listed: bool) -> str | list[str]:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (str, int, float)):
        return str(value)
    if listed and isinstance(value, list) and all(isinstance(one, (str, int)) for one in value):
        return [str(one) for one in value]
    allowed = "a text, a number, true or false" + (", or a list of texts" if listed else "")
    raise StartError(f"{key!r} in args must be {allowed}. Given: {value!r}.")


def _meant(name: str) -> str:
    close = difflib.get_close_matches(name, [one.name for one in fields(Settings)], 1)
    if not close:
        return " `tgi-async serve --help` lists them."
    return f" Did you mean {close[0].replace('_', '-')!r}?"
