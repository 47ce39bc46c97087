"""Whose word counts about who asks."""

from __future__ import annotations

from typing import Any

import pytest

from tgi_async.proxies import MOST_HOPS, Proxies, Trusted

PROXY = "10.0.0.1"
Header = tuple[str, str]


async def seen(
    trusted: str, *headers: Header, peer: str | None = PROXY
) -> tuple[str | None, str, str]:
    """Client, scheme and host that an application sees."""
    found: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope)

    async def nothing(*_: Any) -> Any:
        raise AssertionError

    raw = [(name.encode(), value.encode("latin-1")) for name, value in headers]
    scope = {
        "type": "http",
        "client": None if peer is None else (peer, 1234),
        "scheme": "http",
        "headers": [(b"host", b"inner:80"), *raw],
    }
    await Proxies(app, Trusted(trusted.split(",")))(scope, nothing, nothing)
    scope = found[0]
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    assert len(hosts) == 1
    return scope["client"] and scope["client"][0], scope["scheme"], hosts[0].decode()


async def client(trusted: str, *headers: Header, peer: str | None = PROXY) -> str | None:
    return (await seen(trusted, *headers, peer=peer))[0]


def via(*hops: str) -> Header:
    return "x-forwarded-for", ", ".join(hops)


@pytest.mark.parametrize("trusted", ["10.0.0.1", "10.0.0.0/8", "*", "192.0.2.0/24,10.0.0.0/30"])
async def test_a_trusted_proxy_names_the_client(trusted: str) -> None:
    assert await client(trusted, via("203.0.113.7")) == "203.0.113.7"


async def test_nobody_elses_headers_count() -> None:
    headers = via("1.1.1.1"), ("x-forwarded-proto", "https"), ("x-forwarded-host", "evil.test")
    found = await seen("10.0.0.0/8", *headers, ("forwarded", "for=2.2.2.2"), peer="192.0.2.1")
    assert found == ("192.0.2.1", "http", "inner:80")
    assert await client("10.0.0.0/8", via("1.1.1.1"), peer=None) is None
    assert await client("10.0.0.0/8", via("1.1.1.1"), peer="::1") == "::1"


async def test_the_client_is_the_last_hop_that_is_not_trusted() -> None:
    invented = "8.8.8.8"
    assert await client("10.0.0.0/8", via(invented, "203.0.113.7")) == "203.0.113.7"
    several = via(invented, "203.0.113.7", "10.1.0.1", "10.2.0.1")
    assert await client("10.0.0.0/8", several) == "203.0.113.7"
    # Proxies that are not in a network of theirs are clients.
    assert await client("10.0.0.1", several) == "10.2.0.1"
    assert await client("*", several) == "10.2.0.1"
    assert await client("*,10.0.0.0/8", several) == "203.0.113.7"
    assert await client("10.0.0.0/8", via("10.3.0.1", "10.2.0.1")) == "10.3.0.1"


async def test_several_headers_are_one_list() -> None:
    assert await client("10.0.0.0/8", via("8.8.8.8"), via("203.0.113.7")) == "203.0.113.7"
    lines = ("forwarded", "for=8.8.8.8"), ("forwarded", "for=203.0.113.7")
    assert await client("10.0.0.0/8", *lines) == "203.0.113.7"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("203.0.113.7:4711", "203.0.113.7"),
        (" 203.0.113.7 ", "203.0.113.7"),
        ("2001:db8::1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:99999999", "2001:db8::1"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
    ],
)
async def test_addresses_come_in_many_forms(text: str, address: str) -> None:
    assert await client(PROXY, via(text)) == address


async def test_a_socket_for_both_kinds_shows_proxies_of_ipv4_in_their_form() -> None:
    assert await client("10.0.0.0/8", via("203.0.113.7"), peer="::ffff:10.0.0.1") == "203.0.113.7"


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ",",
        "unknown",
        "localhost",
        "203.0.113.7; drop",
        "1.2.3",
        "203.0.113.999",
        "\xff\x00",
        "[",
    ],
)
async def test_garbage_is_no_client_and_hides_none_behind_it(garbage: str) -> None:
    assert await client("10.0.0.0/8", via(garbage)) == PROXY
    assert await client("10.0.0.0/8", via("8.8.8.8", garbage)) == PROXY
    assert await client("10.0.0.0/8", via(garbage, "203.0.113.7")) == "203.0.113.7"
    assert await client("10.0.0.0/8", via(garbage, "10.2.0.1")) == "10.2.0.1"


async def test_a_list_has_a_longest_length() -> None:
    trusted = ["10.0.0.2"] * MOST_HOPS
    assert await client("10.0.0.0/8", via("203.0.113.7", *trusted[1:])) == "203.0.113.7"
    assert await client("10.0.0.0/8", via("203.0.113.7", *trusted)) == "10.0.0.2"


async def test_whoever_connects_to_the_unix_socket_can_be_trusted() -> None:
    assert await client("unix", via("203.0.113.7"), peer=None) == "203.0.113.7"
    assert await client("unix", via("203.0.113.7")) == PROXY
    assert await client("*", via("203.0.113.7"), peer=None) == "203.0.113.7"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ('for="[2001:db8::1]:80";proto=https;host="a:8443"', ("2001:db8::1", "https", "a:8443")),
        ("For=203.0.113.7; Proto=HTTPS", ("203.0.113.7", "https", "inner:80")),
        ("for=8.8.8.8;host=evil.test, for=203.0.113.7", ("203.0.113.7", "http", "inner:80")),
        ("for=203.0.113.7;host=a.test, for=10.9.0.1;host=b", ("203.0.113.7", "http", "a.test")),
        ("for=_hidden, for=10.9.0.1", ("10.9.0.1", "http", "inner:80")),
        ("for=unknown", (PROXY, "http", "inner:80")),
        ('for="8.8.8.8, for=203.0.113.7', (PROXY, "http", "inner:80")),
        ('a=", for="[2001:db8::1]"', (PROXY, "http", "inner:80")),
        ("nonsense, for=203.0.113.7", (PROXY, "http", "inner:80")),
        (r'for="203.0.113.\7"', ("203.0.113.7", "http", "inner:80")),
        ("", (PROXY, "http", "inner:80")),
    ],
)  # fmt: skip
async def test_forwarded_is_read(given: str, wanted: tuple[str, str, str]) -> None:
    assert await seen("10.0.0.0/8", ("forwarded", given)) == wanted


async def test_x_forwarded_for_counts_before_forwarded_which_many_proxies_pass_on() -> None:
    headers = ("forwarded", "for=8.8.8.8;proto=https"), via("203.0.113.7")
    assert await seen(PROXY, *headers) == ("203.0.113.7", "http", "inner:80")


@pytest.mark.parametrize(
    ("name", "value", "scheme", "host"),
    [
        ("x-forwarded-proto", "https", "https", "inner:80"),
        ("x-forwarded-proto", "http, HTTPS", "https", "inner:80"),
        ("x-forwarded-proto", "javascript", "http", "inner:80"),
        ("x-forwarded-host", "api.test", "http", "api.test"),
        ("x-forwarded-host", "evil.test, [2001:db8::1]:8443", "http", "[2001:db8::1]:8443"),
        ("x-forwarded-host", "a.test/../b", "http", "inner:80"),
        ("x-forwarded-host", "", "http", "inner:80"),
    ],
)
async def test_scheme_and_host(name: str, value: str, scheme: str, host: str) -> None:
    assert await seen(PROXY, (name, value)) == (PROXY, scheme, host)


@pytest.mark.parametrize("text", ["proxy.test", "10.0.0.1/8", "10.0.0.0/33", "", "none"])
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"Allowed are addresses, networks such as 10\.0\.0\.0/8"):
        Trusted([text])
