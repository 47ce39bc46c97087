"""Read settings from flags and environment variables: flag, then variable, then default."""

from __future__ import annotations

import argparse
import ipaddress
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from tgi_async.errors import StartError
from tgi_async.settings import COUNT, SECRETS, Settings
from tgi_async.settings_tgi import (
    HARMLESS,
    NOT_BUILT,
    NOTHING,
    OF_SEVERAL_NODES,
    ONE_NODE,
    OTHER_NAMES,
    VALUES_OF_TGI,
    VARIABLES_WITHOUT_MEANING,
    VERTEX_PORT,
    VERTEX_ROUTES,
    WITHOUT_MEANING,
)

SHORT = {"port": "-p", "graceful_termination_timeout": "-g"}
METAVARS = {int: "N", float: "X", str: "TEXT", tuple: "TEXT", bool: "BOOL"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one flag for each setting, in groups; then TGI's flags that do nothing here, or end the
    start."""
    groups = {name: parser.add_argument_group(name) for name in _groups()}
    for one in fields(Settings):
        meta = one.metadata
        if one.name in SECRETS:
            continue
        names = [flag_of(one.name)]
        if one.name in SHORT:
            names.insert(0, SHORT[one.name])
        text = f"{meta['help']} [env {one.name.upper()}]"
        if one.default not in (None, False, ()):
            strict = "" if meta["strict"] is None else f", with strict-tgi {meta['strict']}"
            text += f" [default {one.default}{strict}]"
        kind = meta["kind"]
        options: dict[str, Any] = {"dest": one.name, "help": text, "metavar": METAVARS[kind]}
        if kind is bool:
            # `--flag`, and TGI's `--flag true`.
            options |= {"nargs": "?", "const": "true"}
        elif kind is tuple:
            options |= {"action": "extend", "nargs": "+"}
        groups[meta["group"]].add_argument(*names, **options)
    idle = parser.add_argument_group("of TGI and vLLM, accepted without effect")
    for name, reason in WITHOUT_MEANING.items():
        _add_foreign(idle, name, reason)
    refused = parser.add_argument_group("of TGI, not built yet: refused at start")
    for name, purpose in NOT_BUILT.items():
        _add_foreign(refused, name, purpose)


def resolve(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings. Raises StartError naming what is wrong."""
    for name, purpose in NOT_BUILT.items():
        for source, raw in _sources(name, given, environment):
            if raw.lower() not in HARMLESS.get(name, ()):
                raise StartError(
                    f"{source} asks for {purpose}, which is not built yet. Leave it out."
                )
    values: dict[str, Any] = {}
    for one in fields(Settings):
        for source, raw in _sources(one.name, given, environment):
            if one.name in VALUES_OF_TGI:
                raw = VALUES_OF_TGI[one.name].get(raw, raw)
            values[one.name] = parse_value(source, raw, one.metadata)
            break
    host = environment.get("HOSTNAME")
    if host and given.get("hostname") is None and not _is_address(host):
        # Containers set HOSTNAME to the machine's name, which is not an address to listen on.
        del values["hostname"]
    if values.get("strict_tgi"):
        own = {one.name: one.metadata["strict"] for one in fields(Settings)}
        values = {name: value for name, value in own.items() if value is not None} | values
    return Settings(**values)


def without_effect(
    given: Mapping[str, Any], environment: Mapping[str, str], *, one_node: bool = True
) -> list[str]:
    """Return a line for each flag or variable that was given and has no effect here. `one_node`
    says whether the model is on this node alone."""
    lines = []
    for name in OF_SEVERAL_NODES if one_node else ():
        for source, _ in _sources(name, given, environment):
            lines.append(f"{source} has no effect: {ONE_NODE}")
            break
    for name, reason in WITHOUT_MEANING.items():
        for source, raw in _sources(name, given, environment):
            if raw == "" or raw.lower() not in NOTHING:
                lines.append(f"{source} has no effect: {reason}")
            break
    for variable, reason in VARIABLES_WITHOUT_MEANING.items():
        if environment.get(variable):
            lines.append(f"the environment variable {variable} has no effect: {reason}")
    for name, meanings in VALUES_OF_TGI.items():
        for source, raw in _sources(name, given, environment):
            if raw in meanings:
                lines.append(f"{source} has TGI's value {raw}, which means {meanings[raw]} here")
            break
    return lines


def parse_value(source: str, raw: str | Sequence[str], meta: Mapping[str, Any]) -> Any:
    """Return the value of a setting, given as `raw` by `source`. `meta` is its field's metadata.

    Raises:
        StartError: it is not allowed.
    """
    if meta["kind"] is tuple:
        given = [raw] if isinstance(raw, str) else raw
        parts = [part.strip() for one in given for part in one.split(",")]
        return tuple(part for part in parts if part)
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
    if meta["kind"] is float:
        try:
            return float(raw)
        except ValueError:
            raise StartError(f"{source} must be a number. Given: {raw!r}.") from None
    if not raw:
        raise StartError(f"{source} must not be empty. Leave it out, or give it a value.")
    if meta["choices"] and raw not in meta["choices"]:
        raise StartError(f"{source} must be one of {', '.join(meta['choices'])}. Given: {raw!r}.")
    return raw


def short_flags() -> dict[str, str]:
    """Return the flags of one letter, by setting."""
    return dict(SHORT)


def flag_of(name: str) -> str:
    """Return the flag of a setting."""
    return f"--{name.replace('_', '-')}"


def _add_foreign(group: argparse._ArgumentGroup, name: str, text: str) -> None:
    # A value that follows is consumed, if there is one.
    group.add_argument(
        flag_of(name), dest=name, nargs="?", const="", metavar="VALUE", help=text.replace("%", "%%")
    )


def _sources(
    name: str, given: Mapping[str, Any], environment: Mapping[str, str]
) -> Iterator[tuple[str, Any]]:
    """Yield where this setting was given and its value there, the place that counts first."""
    if given.get(name) is not None:
        yield flag_of(name), given[name]
    for variable in _variables(name, environment):
        if environment.get(variable):
            yield f"the environment variable {variable}", environment[variable]


def _variables(name: str, environment: Mapping[str, str]) -> list[str]:
    variables = [name.upper()]
    if name in OTHER_NAMES:
        variables.append(OTHER_NAMES[name])
    if name == "port" and any(environment.get(route) for route in VERTEX_ROUTES):
        # An image may set PORT; a flag of the operator goes first.
        variables.insert(0, VERTEX_PORT)
    return variables


def _groups() -> list[str]:
    return list(dict.fromkeys(one.metadata["group"] for one in fields(Settings)))


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
