"""Where images may be fetched from: hosts by their names, and only addresses of the public net.

A name says little: whoever owns it chooses its addresses, also those of this machine's neighbours,
and may choose others the next time. So what is checked are the addresses that a connection is then
made to.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import quote, urljoin, urlsplit

from tgi_async.images.source import Refused

PORTS = {"http": 80, "https": 443}
"""Schemes, and the ports that may be used without being named with the domain."""
LONGEST_URL = 8192
LONGEST_NAME = 253
NAMES_SHOWN = 8

_LABELS = re.compile(r"[a-z0-9_-]{1,63}(\.[a-z0-9_-]{1,63})*")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")
_ENTRY = re.compile(r"(?P<below>\*\.)?(?P<name>\[[^\]]+\]|[^:\[\]/@?#\s*]+)(:(?P<port>\d{1,5}))?")

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def _networks(text: str) -> tuple[_Network, ...]:
    return tuple(map(ipaddress.ip_network, text.split()))


PRIVATE = _networks(
    "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 127.0.0.0/8 fc00::/7 ::1/128"
)
"""What an operator can allow: private networks, those of providers, this machine."""
METADATA = _networks(
    "169.254.169.254/32 168.63.129.16/32 100.100.100.200/32 192.0.0.192/32 fd00:ec2::254/128 "
    "fd20:ce::254/128"
)
"""Where clouds tell a machine its secrets. One of them is a public address."""
NOT_PUBLIC = _networks(
    # This network, private ones, providers' own, this machine, the link, protocols, examples,
    # relays of other protocols, measurements, multicast, and what is not given out.
    "0.0.0.0/8 10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 169.254.0.0/16 172.16.0.0/12 192.0.0.0/24 "
    "192.0.2.0/24 192.31.196.0/24 192.52.193.0/24 192.88.99.0/24 192.168.0.0/16 192.175.48.0/24 "
    "198.18.0.0/15 198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4 "
    # Of IPv6 what of the public part has another meaning: tunnels (Teredo, 6to4), whose addresses
    # have an IPv4 address in them, and examples.
    "2001::/23 2001:db8::/32 2002::/16 3fff::/20"
)
PUBLIC_IPV6 = ipaddress.IPv6Network("2000::/3")
"""All of IPv6 that is given out; the forms that hold an IPv4 address lie elsewhere."""


class Place(NamedTuple):
    """A URL, taken apart."""

    scheme: str
    host: str
    """In lower case, ASCII, without the brackets of an IPv6 address."""
    port: int
    target: str
    """Path and query."""

    @property
    def is_address(self) -> bool:
        return _parsed(self.host) is not None

    @property
    def shown(self) -> str:
        """The host as it stands in a URL, with its port if that is not the scheme's."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def place_of(url: str, base: Place | None = None) -> Place:
    """Take a URL apart, which may be relative to that of an earlier hop. Raises Refused."""
    url = url.strip(" ")
    if base is None and not url[:8].lower().startswith(("http://", "https://")):
        raise not_fetched("its URL must begin with http://, https:// or data:")
    if len(url) > LONGEST_URL:
        raise not_fetched(f"its URL is longer than {LONGEST_URL} characters")
    if "\\" in url or any(ord(character) < 33 or ord(character) == 127 for character in url):
        raise not_fetched("its URL has spaces, backslashes or control characters")
    try:
        if base is not None:
            url = urljoin(f"{base.scheme}://{base.shown}{base.target}", url)
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
        target = quote(parts.path or "/", safe="/%!$&'()*+,;=:@~")
        if parts.query:
            target += "?" + quote(parts.query, safe="/%!$&'()*+,;=:@~?")
    except ValueError:
        raise not_fetched("its URL is not valid") from None
    if parts.scheme not in PORTS or not host or ("[" in parts.netloc and ":" not in host):
        raise not_fetched("its URL is not valid, or leads to one that is neither http nor https")
    if "@" in parts.netloc:
        raise not_fetched("its URL must not have a user's name or password")
    if port is None:
        port = PORTS[parts.scheme]
    return Place(parts.scheme, _host(host), port, target)


def _host(text: str) -> str:
    """Return a host in its usual form. Raises Refused."""
    if ":" in text:
        if "%" not in text and (address := _parsed(text)) is not None:
            return str(address)
        raise not_fetched("its URL has no valid IPv6 address")
    name = text.removesuffix(".")
    if not name.isascii() and len(name) <= LONGEST_NAME:
        try:
            name = name.encode("idna").decode("ascii").lower().removesuffix(".")
        except UnicodeError:
            name = ""
    if len(name) > LONGEST_NAME or not _LABELS.fullmatch(name):
        raise not_fetched("the host of its URL is not a valid name")
    if _NUMBER.fullmatch(name.rpartition(".")[2]) and _parsed(name) is None:
        # Also 2130706433, 0x7f.1 and 0177.0.0.1, which some libraries take for 127.0.0.1.
        raise not_fetched("an IPv4 address in its URL must have the form 192.0.2.1")
    return name


def _parsed(text: str) -> _Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


class _Entry(NamedTuple):
    """A domain that the operator allows."""

    name: str
    below: bool
    """Whether it stands for all names below it."""
    port: int | None

    def has(self, place: Place) -> bool:
        if place.port not in ((80, 443) if self.port is None else (self.port,)):
            return False
        return place.host.endswith(f".{self.name}") if self.below else place.host == self.name


class Domains:
    """The hosts that images may be fetched from."""

    def __init__(self, allowed: Sequence[str] = (), *, private: bool = False) -> None:
        """`allowed` are `example.com`, `*.example.com` (all names below it), either with `:port`,
        or `*`. With `private`, hosts that are named there may have private addresses.

        Raises ValueError with what is wrong.
        """
        self.allowed = tuple(allowed)
        self._all = "*" in allowed
        self._entries = [_entry(text) for text in allowed if text != "*"]
        self._private = private

    def __bool__(self) -> bool:
        return bool(self.allowed)

    def check(self, place: Place) -> None:
        """Raises Refused for a host or port that is not allowed."""
        if self._named(place) or (self._all and place.port in PORTS.values()):
            return
        if not self.allowed:
            raise not_fetched(
                "only data: URLs are allowed here. The server's --allow-image-domains allows others"
            )
        names = ", ".join(self.allowed[:NAMES_SHOWN])
        more = ", ..." if len(self.allowed) > NAMES_SHOWN else ""
        raise not_fetched(
            f"{place.shown[:100]} is not allowed. Allowed are {names}{more}, with ports 80 and 443 "
            "where none is named. The server's --allow-image-domains sets this"
        )

    def check_addresses(self, place: Place, addresses: Sequence[str]) -> None:
        """Raises Refused if any of the host's addresses is not allowed."""
        private = self._private and self._named(place)
        if not all(_is_allowed(address, private=private) for address in addresses):
            raise not_fetched(
                f"{place.host[:100]} has an address that is not public. The server's "
                "--allow-private-image-addresses allows that for domains that it names"
            )

    def _named(self, place: Place) -> bool:
        return any(entry.has(place) for entry in self._entries)


def _is_allowed(text: str, *, private: bool) -> bool:
    address = _parsed(text)
    if address is None or _within(address, METADATA):
        return False
    if private and _within(address, PRIVATE):
        return True
    return is_public(address)


def is_public(address: _Address) -> bool:
    """Return whether an address is one machine's of the public net, which is nobody's secret."""
    if address.version == 6 and address not in PUBLIC_IPV6:
        return False
    return not _within(address, NOT_PUBLIC) and not _within(address, METADATA)


def _within(address: _Address, networks: Sequence[_Network]) -> bool:
    return any(address in network for network in networks)


def _entry(text: str) -> _Entry:
    found = _ENTRY.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a domain, such as example.com or *.example.com")
    try:
        name = _host(found["name"].lower().strip("[]"))
    except Refused:
        raise ValueError(f"{text!r} has no valid name or address") from None
    port = int(found["port"]) if found["port"] else None
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"{text!r} has a port that is not from 1 to 65535")
    return _Entry(name, found["below"] is not None, port)


def not_fetched(why: str) -> Refused:
    """Return the refusal, in TGI's words."""
    return Refused(f"Could not fetch image: {why}")
