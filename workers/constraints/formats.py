"""The formats of strings that the engine itself knows, as regular expressions.

Each follows the grammar of the document that JSON Schema names for it, as far as the engine does:
no quoted names in addresses of mail, and no IPv4 address at the end of an IPv6 one.
"""

from __future__ import annotations

_DIGITS = "[0-9]+"
_HEX = "[0-9a-fA-F]"


def _descending(units: str) -> str:
    """Return numbers of some units in descending order: the first is any of them, none is left out
    between."""
    options = []
    behind = ""
    for unit in reversed(units):
        part = f"{_DIGITS}{unit}{behind}"
        options.append(part)
        behind = f"(?:{part})?"
    return f"(?:{'|'.join(options)})"


# RFC 3339, appendix A: dur-date, dur-time and dur-week
_DAYS, _TIME = _descending("YMD"), f"T{_descending('HMS')}"
_DURATION = f"P(?:{_DAYS}(?:{_TIME})?|{_TIME}|{_DIGITS}W)"

# RFC 3986, section 3.2.2: dec-octet, as RFC 2673 (3.2) has it in words
_OCTET = "(?:[0-9]|[1-9][0-9]|1[0-9]{2}|2[0-4][0-9]|25[0-5])"
_IPV4 = rf"{_OCTET}(?:\.{_OCTET}){{3}}"

# RFC 4291, section 2.2: eight groups, of which `::` stands for one or more that are zero
_GROUP = f"{_HEX}{{1,4}}"


def _groups(least: int, most: int) -> str:
    return f"{_GROUP}(?::{_GROUP}){{{least - 1},{most - 1}}}"


def _ipv6() -> str:
    options = [_groups(8, 8)]
    for n in range(8):
        before = _groups(n, n) if n else ""
        behind = f"(?:{_groups(1, 7 - n)})?" if n < 7 else ""
        options.append(f"{before}::{behind}")
    return f"(?:{'|'.join(options)})"


# RFC 1123, section 2.1, and RFC 1034, section 3.5: labels of up to 63 characters
_ALNUM = "[a-zA-Z0-9]"
_HOST_LABEL = f"{_ALNUM}(?:[a-zA-Z0-9-]{{0,61}}{_ALNUM})?"
_HOSTNAME = rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*"

# RFC 5321, section 4.1.2: Mailbox, with Dot-string before the `@`; atext is of RFC 5322 (3.2.3)
_ATOM = r"[a-zA-Z0-9!#$%&'*+/=?\^_`{|}~-]+"
_SUB_DOMAIN = f"{_ALNUM}(?:[a-zA-Z0-9-]*{_ALNUM})?"
_DOMAIN = rf"{_SUB_DOMAIN}(?:\.{_SUB_DOMAIN})*"
_EMAIL = rf"{_ATOM}(?:\.{_ATOM})*@(?:{_DOMAIN}|\[{_IPV4}\])"

# RFC 9562, section 4
_UUID = f"{_HEX}{{8}}(?:-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"

# RFC 3986, appendix A
_UNRESERVED = r"a-zA-Z0-9\-._~"
_SUB_DELIMS = "!$&'()*+,;="
_ENCODED = f"%{_HEX}{{2}}"


def _any_of(more: str) -> str:
    """Return unreserved / pct-encoded / sub-delims, or one of these characters."""
    return f"(?:[{_UNRESERVED}{_SUB_DELIMS}{more}]|{_ENCODED})"


_PCHAR = _any_of(":@")
_SEGMENTS = f"(?:/{_PCHAR}*)*"
_IPV_FUTURE = rf"v{_HEX}+\.[{_UNRESERVED}{_SUB_DELIMS}:]+"
_HOST = rf"(?:\[(?:{_ipv6()}|{_IPV_FUTURE})\]|{_any_of('')}*)"  # a reg-name, or an IPv4 address too
_AUTHORITY = f"(?:{_any_of(':')}*@)?{_HOST}(?::[0-9]*)?"
_PATH = f"/?(?:{_PCHAR}+{_SEGMENTS})?"  # path-absolute, path-rootless or path-empty
_HIER_PART = f"(?://{_AUTHORITY}{_SEGMENTS}|{_PATH})"
_QUERY = f"{_any_of(':@/?')}*"  # and a fragment
_URI = rf"[a-zA-Z][a-zA-Z0-9+\-.]*:{_HIER_PART}(?:\?{_QUERY})?(?:#{_QUERY})?"

FORMATS = {
    "duration": _DURATION,
    "email": _EMAIL,
    "hostname": _HOSTNAME,
    "ipv4": _IPV4,
    "ipv6": _ipv6(),
    "uri": _URI,
    "uuid": _UUID,
}
