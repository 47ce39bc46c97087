"""The formats of strings that the engines know themselves, as regular expressions."""

from __future__ import annotations

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"
_H16 = "[0-9a-fA-F]{1,4}"
_LS32 = f"{_H16}:{_H16}"
_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST_LABEL = "[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_ATOM = r"[a-zA-Z0-9!#$%&'*+\-/=?\^_`{|}~]+"
_FREE = r"[a-zA-Z0-9\-._~!$&'()*+,;=]|%[0-9a-fA-F]{2}"
_PATH = rf"(?:{_FREE}|[:@])"
_TIME = "(?:[0-9]+H(?:[0-9]+M(?:[0-9]+S)?)?|[0-9]+M(?:[0-9]+S)?|[0-9]+S)"
_DAYS = "(?:[0-9]+Y(?:[0-9]+M(?:[0-9]+D)?)?|[0-9]+M(?:[0-9]+D)?|[0-9]+D)"


def _shortened() -> str:
    """An IPv6 address in which `::` stands for some groups (RFC 3986, section 3.2.2)."""
    options = []
    for n_before in range(8):
        before = f"(?:(?:{_H16}:){{0,{n_before - 1}}}{_H16})?" if n_before else ""
        n_after = 5 - n_before
        if n_after > 0:
            after = f"(?:{_H16}:){{0,{n_after}}}{_LS32}"
        else:
            after = {0: _LS32, -1: _H16, -2: ""}[n_after]
        options.append(f"{before}::{after}")
    return "|".join(options)


def _bracketed() -> str:
    """An IPv6 address in a URI, in which `::` may stand for nothing too."""
    options = [f"(?:{_H16}:){{7}}{_H16}", f"(?:{_H16}:){{1,7}}:", "::"]
    for n_after in range(1, 7):
        options.append(f"(?:{_H16}:){{1,{7 - n_after}}}(?::{_H16}){{1,{n_after}}}")
    options.append(f":(?::{_H16}){{1,7}}")
    options.append(r"v[0-9a-fA-F]+\.(?:[a-zA-Z0-9\-._~!$&'()*+,;=:])+")
    return "|".join(options)


FORMATS = {
    "duration": f"P(?:{_DAYS}(?:T{_TIME})?|T{_TIME}|[0-9]+W)",
    "email": rf"{_ATOM}(?:\.{_ATOM})*@(?:{_LABEL}(?:\.{_LABEL})*|\[{_IPV4}\])",
    "hostname": rf"{_HOST_LABEL}(?:\.{_HOST_LABEL})*",
    "ipv4": _IPV4,
    "ipv6": f"(?:{_H16}:){{7}}{_H16}|{_shortened()}",
    "uuid": "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
    "uri": (
        r"[a-zA-Z][a-zA-Z0-9+\-.]*:"
        rf"(?://(?:(?:{_FREE}|:)*@)?(?:\[(?:{_bracketed()})\]|(?:{_FREE})*)(?::[0-9]*)?"
        rf"(?:/{_PATH}*)*|/?(?:{_PATH}+(?:/{_PATH}*)*)?)"
        rf"(?:\?(?:{_PATH}|[/?])*)?(?:#(?:{_PATH}|[/?])*)?"
    ),
}
