"""What each flag and variable of a start of TGI's does here.

All that is known of them is in `settings`, `settings_tgi` and docs/differences.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from tgi_async.arguments import flag_of, parse_value, resolve, short_flags
from tgi_async.errors import StartError
from tgi_async.migrate.differences import Difference, differences
from tgi_async.migrate.launch import OPEN, Launch, Line
from tgi_async.platforms import FLAG_PREFIX, FOLDER_VARIABLES
from tgi_async.settings import Settings
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

FIELDS = {one.name: one.metadata for one in fields(Settings)}
PRINTING = ("--help", "-h", "--version", "-V", "--env", "-e")
"""Flags that print, and that no value follows. With the last two a server starts all the same."""
NOT_CHECKED = "its value is filled in elsewhere, and was not checked"
READ_BY_OTHERS = {
    "HF_": "read by huggingface_hub",
    "HUGGING_FACE_": "read by huggingface_hub",
    "CUDA_": "read by CUDA",
    "NVIDIA_": "read by NVIDIA's container runtime",
    "NCCL_": "read by NCCL",
    "OTEL_": "read by OpenTelemetry",
}
"""Beginnings of variables that are no server's of its own, and no less here than in TGI."""


NO_SETTINGS = ("HF_API_TOKEN", "TGI_ASYNC_CACHE", "CLUSTER_SECRET")
"""What the server reads without being a setting."""
OF_PLATFORMS = (*FOLDER_VARIABLES.values(), "SAGEMAKER_BIND_TO_PORT", "K_SERVICE")
"""What clouds set for containers."""


@dataclass(slots=True)
class Judgement:
    """Every line, and why the rest would fail as a whole, if it would."""

    lines: list[Line]
    defaults: list[Line]
    """What was not given and has another default here."""
    problem: str | None

    @property
    def starts(self) -> bool:
        return self.problem is None and all(one.verdict != "refused" for one in self.lines)


@dataclass(frozen=True, slots=True)
class _Flag:
    """A flag as it was written; `value` is None where it has none."""

    word: str
    name: str
    value: str | None

    @property
    def given(self) -> str:
        return self.word if self.value is None else f"{self.word} {self.value}"


def judge(launch: Launch) -> Judgement:
    """Return what becomes of this start."""
    known = differences()
    flags = list(_flags(launch.arguments))
    lines = list(launch.around)
    lines += [_about_flag(flag, known) for flag in flags]
    given = {flag.name for flag in flags}
    for name, value in launch.variables.items():
        lines.append(_about_variable(name, value, launch, given, known))
    refused = {line.given for line in lines if line.verdict == "refused"}
    return Judgement(lines, _defaults(launch, given, known), _problem(launch, flags, refused))


def _flags(arguments: list[str]) -> Iterator[_Flag]:
    short = {letter: name for name, letter in short_flags().items()}
    rest = list(arguments)
    while rest:
        word, equals, value = rest.pop(0).partition("=")
        name = short.get(word) or ("" if "_" in word else word[2:].replace("-", "_"))
        if equals or not word.startswith("-"):
            yield _Flag(word, name, value if equals else None)
            continue
        values: list[str] = []
        while rest and not rest[0].startswith("--") and len(values) < _most_values(name, word):
            values.append(rest.pop(0))
        yield _Flag(word, name, " ".join(values) if values else None)


def _most_values(name: str, word: str) -> int:
    if word in PRINTING:
        return 0
    return 100 if name in FIELDS and FIELDS[name]["kind"] is tuple else 1


def _about_flag(flag: _Flag, known: list[Difference]) -> Line:
    if flag.word in PRINTING:
        serves = flag.word in ("--env", "-e")
        said = "prints, and serves if other flags are given" if serves else "prints, no more"
        return Line(flag.given, "same", said)
    if flag.name in NOT_BUILT or flag.name in WITHOUT_MEANING:
        return _about_foreign(flag.name, flag.given, flag.value or "")
    if OPEN.match(flag.word):  # flags, or nothing
        return Line(flag.given, "same", NOT_CHECKED)
    if not flag.word.startswith("-"):
        return Line(flag.given, "refused", "neither a flag nor the value of one")
    if flag.name not in FIELDS:
        return Line(flag.given, "refused", "no flag of TGI's or of this server's")
    if flag.value is None and FIELDS[flag.name]["kind"] is not bool:
        return Line(flag.given, "refused", f"{flag.word} needs a value")
    value = "true" if flag.value is None else flag.value
    return _about_setting(flag.name, flag.given, value, known)


def _about_variable(
    name: str, value: str, launch: Launch, flags: set[str], known: list[Difference]
) -> Line:
    given = f"{name}={value}"
    if name in VARIABLES_WITHOUT_MEANING:
        return Line(given, "no effect", VARIABLES_WITHOUT_MEANING[name])
    setting = name.lower()
    own = {other: one for one, other in OTHER_NAMES.items()}
    if name in own:
        setting = own[name]
        if launch.variables.get(setting.upper()):
            return Line(given, "no effect", f"{setting.upper()} is given too, and counts")
    elif name == VERTEX_PORT and any(launch.variables.get(one) for one in VERTEX_ROUTES):
        setting = "port"
    elif name != name.upper():
        setting = ""
    if setting in NOT_BUILT or setting in WITHOUT_MEANING:
        return _about_foreign(setting, given, value)
    if setting not in FIELDS:
        readers = [text for start, text in READ_BY_OTHERS.items() if name.startswith(start)]
        if name in VERTEX_ROUTES or name in NO_SETTINGS:
            return Line(given, "same")
        if launch.image and (name in OF_PLATFORMS or name.startswith(FLAG_PREFIX)):
            return Line(given, "same", "read in this server's image: docs/deploy/docker.md")
        return Line(given, "same", readers[0] if readers else "not read by this server")
    if setting in flags:
        return Line(given, "no effect", f"{flag_of(setting)} is given too, and counts")
    if not value:
        return Line(given, "same", "empty, as if it were not given")
    return _about_setting(setting, given, value, known, variable=name)


def _about_foreign(name: str, given: str, value: str) -> Line:
    if name in WITHOUT_MEANING:
        if value and value.lower() in NOTHING:
            return Line(given, "same")
        return Line(given, "no effect", WITHOUT_MEANING[name])
    if value.lower() in HARMLESS.get(name, ()):
        return Line(given, "same")
    return Line(given, "refused", f"asks for {NOT_BUILT[name]}, which is not built yet")


def _about_setting(
    name: str, given: str, value: str, known: list[Difference], variable: str = ""
) -> Line:
    meanings = VALUES_OF_TGI.get(name, {})
    if value in meanings:
        return Line(given, "changed", f"TGI's value {value} means {meanings[value]} here")
    if OPEN.search(value):
        return Line(given, "same", NOT_CHECKED)
    meta = FIELDS[name]
    try:
        parse_value(flag_of(name), value.split() if meta["kind"] is tuple else value, meta)
    except StartError as error:
        return Line(given, "refused", str(error))
    if name in OF_SEVERAL_NODES:
        return Line(given, "no effect", ONE_NODE)
    names = _names(name) | {variable}
    about = [one for one in known if not one.is_default and names & one.names]
    if not about:
        return Line(given, "same")
    return Line(given, "changed", "\n".join(_said(one, names) for one in about))


def _names(name: str) -> set[str]:
    return {flag_of(name), name.upper()}


def _said(one: Difference, names: set[str]) -> str:
    said = f"in TGI {one.in_tgi}; here {one.here}"
    return said if one.what in names else f"{one.what}: {said}"


def _defaults(launch: Launch, flags: set[str], known: list[Difference]) -> list[Line]:
    """What is not given and means something else then."""
    found = []
    for one in known:
        absent = [
            name
            for name in FIELDS
            if _names(name) & one.names
            and name not in flags
            and not launch.variables.get(name.upper())
            and not launch.variables.get(OTHER_NAMES.get(name, ""))
        ]
        if one.is_default and absent:
            found.append(Line(one.what, "changed", f"in TGI {one.in_tgi}; here {one.here}"))
    return found


def _problem(launch: Launch, flags: list[_Flag], refused: set[str]) -> str | None:
    """Return why the settings as a whole are refused, without those that are by themselves, and
    without values that are filled in elsewhere."""
    given: dict[str, Any] = {}
    for flag in flags:
        value = "true" if flag.value is None else flag.value
        if flag.name in FIELDS and flag.given not in refused and not OPEN.search(value):
            tuples = FIELDS[flag.name]["kind"] is tuple
            given[flag.name] = [*given.get(flag.name, []), *value.split()] if tuples else value
    variables = {
        name: value
        for name, value in launch.variables.items()
        if value and f"{name}={value}" not in refused and not OPEN.search(value)
    }
    try:
        resolve(given, variables)
    except StartError as error:
        return str(error)
    return None
