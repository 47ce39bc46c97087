"""The formats of strings that are enforced, and those that are known to be annotations."""

from __future__ import annotations

_YEAR = "[0-9]{4}"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|"
    f"(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = (
    r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?"
    "(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
)
_HEX = "[0-9a-fA-F]"
FORMATS_AS_PATTERNS = {
    **{
        f"uuid{version}": (
            f"^{_HEX}{{8}}-{_HEX}{{4}}-{version}{_HEX}{{3}}-[89abAB]{_HEX}{{3}}-{_HEX}{{12}}$"
        )
        for version in range(1, 9)
    },
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}[Tt]{_TIME}$",
}
"""Formats that are enforced as patterns, stricter than the engines': a day must exist in its month
and year, and there is no 61st second. Those of single versions of UUID are pydantic's."""

FORMATS = ("duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid")
"""Formats that engines support themselves."""

ANNOTATIONS = frozenset(
    {
        "binary",
        "byte",
        "char",
        "decimal",
        "double",
        "float",
        "hidden",
        "int16",
        "int32",
        "int64",
        "int8",
        "multiline",
        "password",
        "path",
        "textarea",
        "uint",
        "uint16",
        "uint32",
        "uint64",
        "uint8",
    }
)
"""Formats of OpenAPI and common generators that say how a value is stored or shown."""


def is_unknown_format(name: str) -> bool:
    """Return whether a format was probably meant as a constraint, and is ignored."""
    return name not in FORMATS and name not in FORMATS_AS_PATTERNS and name not in ANNOTATIONS
