from __future__ import annotations

import ipaddress
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_async.images.addresses import Domains, Place, is_public, place_of
from tgi_async.images.source import Refused


def place(url: str, base: str | None = None) -> Place:
    return place_of(url, None if base is None else place_of(base))


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("http://a.example/b.png", ("http", "a.example", 80, "/b.png")),
        ("HTTPS://A.Example./b?c=d#e", ("https", "a.example", 443, "/b?c=d")),
        ("https://a.example", ("https", "a.example", 443, "/")),
        ("https://a.example?x=1", ("https", "a.example", 443, "/?x=1")),
        (
            "http://a.example:8080/%20ü b".replace(" ", ""),
            ("http", "a.example", 8080, "/%20%C3%BCb"),
        ),
        ("http://bücher.example/", ("http", "xn--bcher-kva.example", 80, "/")),
        ("http://\uff11\uff19\uff12.0.2.1/", ("http", "192.0.2.1", 80, "/")),
        ("http://[2001:DB8::1]:81/", ("http", "2001:db8::1", 81, "/")),
        (" http://a.example/ ", ("http", "a.example", 80, "/")),
    ],
)
def test_a_url_is_taken_apart(url: str, found: tuple[str, str, int, str]) -> None:
    assert place(url) == found


@pytest.mark.parametrize(
    ("to", "found"),
    [
        ("/c", ("https", "a.example", 8443, "/c")),
        ("c?d", ("https", "a.example", 8443, "/b/c?d")),
        ("//other.example/x", ("https", "other.example", 443, "/x")),
        ("http://other.example", ("http", "other.example", 80, "/")),
    ],
)
def test_a_redirect_is_relative_to_its_hop(to: str, found: tuple[str, str, int, str]) -> None:
    assert place(to, "https://a.example:8443/b/z") == found


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("ftp://a.example/", "must begin with http"),
        ("file:///etc/passwd", "must begin with http"),
        ("/9j/4AAQSkZJRg" * 1000, "must begin with http"),
        ("//a.example/", "must begin with http"),
        ("http:///x", "not valid"),
        ("http://", "not valid"),
        ("http://a.example:99999/", "not valid"),
        ("http://a.example:x/", "not valid"),
        ("http://[::1/", "not valid"),
        ("http://[::1]a.example/", "not valid"),
        ("http://[::1]81/", "not valid"),
        ("http://user@a.example/", "user's name"),
        ("http://user:secret@a.example/", "user's name"),
        ("http://a.example\\@b.example/", "backslashes"),
        ("http://a.example/\r\nhost: b", "control characters"),
        ("http://a.example/\tb", "control characters"),
        ("http://a.example/ b", "spaces"),
        ("http://a%2eexample/", "not a valid name"),
        ("http://a..example/", "not a valid name"),
        ("http://a.example,b/", "not a valid name"),
        (f"http://{'a' * 64}.example/", "not a valid name"),
        (f"http://{'ü' * 64}.example/", "not a valid name"),
        (f"http://{'a.' * 127}example/", "not a valid name"),
        ("http://a.example/" + "x" * 8192, "longer than 8192"),
        ("http://2130706433/", "form 192.0.2.1"),
        ("http://0x7f000001/", "form 192.0.2.1"),
        ("http://0x7f.1/", "form 192.0.2.1"),
        ("http://127.1/", "form 192.0.2.1"),
        ("http://0177.0.0.1/", "form 192.0.2.1"),
        ("http://0300.0250.0.1/", "form 192.0.2.1"),
        ("http://1.2.3.4.5/", "form 192.0.2.1"),
        ("http://127。1/", "form 192.0.2.1"),
        ("http://[fe80::1%25eth0]/", "IPv6"),
        ("http://a.example/\ud800", "not valid"),
        ("http://[v1.a]/", "not valid|IPv6"),
    ],
)
def test_a_url_that_may_be_read_in_two_ways_is_refused(url: str, why: str) -> None:
    with pytest.raises(Refused, match=f"^Could not fetch image: .*({why})"):
        place(url)


ODD = st.text(
    st.one_of(
        st.sampled_from("ab1.:/@[]%?#-_\\ \t\u3002\uff10\u00ad\u200d\u2488\ufb01\ud800"),
        st.characters(codec=None, categories=None),
    ),
    max_size=30,
)


@given(st.sampled_from(["http://", "https://a.example/", "http://a.", "", "//"]), ODD)
def test_any_text_is_a_place_or_refused(start: str, rest: str) -> None:
    base = place("http://a.example/b")
    for given_base in (None, base):
        try:
            found = place_of(start + rest, given_base)
        except Refused:
            continue
        assert re.fullmatch(r"[a-z0-9_.-]+|[0-9a-f:.]+", found.host)
        assert re.fullmatch(r"/[!-~]*", found.target)
        assert found.scheme in ("http", "https")
        assert 0 <= found.port < 65536
        again = place_of(f"{found.scheme}://{found.shown}{found.target}")
        assert again == found


@pytest.mark.parametrize("to", ["ftp://a.example/", "data:image/png;base64,AAAA", "javascript:x"])
def test_a_redirect_to_another_scheme_is_refused(to: str) -> None:
    with pytest.raises(Refused, match="neither http nor https"):
        place(to, "https://a.example/")


PUBLIC = ["8.8.8.8", "1.1.1.1", "192.0.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111"]
NOT_PUBLIC = {
    "this network": "0.0.0.0",
    "this network, further": "0.1.2.3",
    "private, 10": "10.1.2.3",
    "private, 172": "172.31.255.255",
    "private, 192": "192.168.0.1",
    "providers' own": "100.64.0.1",
    "loopback": "127.0.0.1",
    "loopback, further": "127.8.8.8",
    "link-local": "169.254.1.1",
    "metadata of AWS, GCP, Azure": "169.254.169.254",
    "metadata of Azure at a public address": "168.63.129.16",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "protocols": "192.0.0.8",
    "examples": "203.0.113.9",
    "6to4 relays": "192.88.99.1",
    "measurements": "198.19.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 unspecified": "::",
    "IPv6 loopback": "::1",
    "IPv4 in IPv6": "::ffff:8.8.8.8",
    "IPv4 in IPv6, old form": "::8.8.8.8",
    "NAT64": "64:ff9b::808:808",
    "NAT64, local": "64:ff9b:1::1",
    "discarded": "100::1",
    "Teredo": "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    "ORCHID": "2001:20::1",
    "IPv6 examples": "2001:db8::1",
    "more IPv6 examples": "3fff::1",
    "6to4": "2002:7f00:1::1",
    "segment routing": "5f00::1",
    "unique local": "fd12:3456::1",
    "metadata of AWS, IPv6": "fd00:ec2::254",
    "IPv6 link-local": "fe80::1",
    "IPv6 link-local with its link": "fe80::1%eth0",
    "site-local": "fec0::1",
    "IPv6 multicast": "ff02::1",
}
ANYWHERE = Domains(["*"])
WEB = Place("http", "a.example", 80, "/")


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_connected_to(address: str) -> None:
    ANYWHERE.check_addresses(WEB, [address])


@pytest.mark.parametrize("address", NOT_PUBLIC.values(), ids=NOT_PUBLIC)
def test_no_other_addresses_are(address: str) -> None:
    with pytest.raises(Refused, match="has an address that is not public"):
        ANYWHERE.check_addresses(WEB, [address])
    with pytest.raises(Refused):
        ANYWHERE.check_addresses(WEB, [PUBLIC[0], address])


def test_what_is_public_is_global_to_python_too() -> None:
    for address in map(ipaddress.ip_address, PUBLIC):
        assert is_public(address)
        assert address.is_global


@pytest.mark.parametrize("address", ["10.1.2.3", "127.0.0.1", "100.64.0.1", "fd12::1", "::1"])
def test_private_addresses_are_for_hosts_that_are_named(address: str) -> None:
    named = Domains(["*", "a.example"], private=True)
    named.check_addresses(WEB, [address, "8.8.8.8"])
    for domains, place in (
        (named, WEB._replace(host="b.example")),
        (Domains(["a.example"]), WEB),
        (Domains(["*"], private=True), WEB),
    ):
        with pytest.raises(Refused, match="--allow-private-image-addresses"):
            domains.check_addresses(place, [address])


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fd00:ec2::254", "0.0.0.0", "169.254.0.1", "::ffff:10.0.0.1"]
)
def test_some_addresses_are_for_nobody(address: str) -> None:
    with pytest.raises(Refused):
        Domains(["a.example"], private=True).check_addresses(WEB, [address])


@pytest.mark.parametrize(
    ("allowed", "url", "fits"),
    [
        ("a.example", "http://a.example/", True),
        ("A.Example", "https://a.example/", True),
        ("a.example", "https://a.example:80/", True),
        ("a.example", "https://a.example.:443/", True),
        ("a.example", "http://a.example:8080/", False),
        ("a.example:8080", "http://a.example:8080/", True),
        ("a.example:8080", "http://a.example/", False),
        ("a.example", "http://b.a.example/", False),
        ("a.example", "http://xa.example/", False),
        ("a.example", "http://a.example.b.test/", False),
        ("*.a.example", "http://b.a.example/", True),
        ("*.a.example", "http://c.b.a.example/", True),
        ("*.a.example", "http://a.example/", False),
        ("*.a.example", "http://ba.example/", False),
        ("*.a.example:81", "http://b.a.example:81/", True),
        ("*", "http://any.test/", True),
        ("*", "http://any.test:22/", False),
        ("bücher.example", "http://xn--bcher-kva.example/", True),
        ("192.0.2.1", "http://192.0.2.1/", True),
        ("[2001:db8::1]:81", "http://[2001:db8:0::1]:81/", True),
        ("2001:db8::1", "http://[2001:db8::1]/", None),
    ],
)
def test_domains_are_matched_whole(allowed: str, url: str, fits: bool | None) -> None:
    if fits is None:
        with pytest.raises(ValueError, match="is not a domain"):
            Domains([allowed])
    elif fits:
        Domains(["other.test", allowed]).check(place(url))
    else:
        with pytest.raises(Refused, match=r"is not allowed\. Allowed are .*--allow-image-domains"):
            Domains(["other.test", allowed]).check(place(url))


def test_without_domains_the_message_says_how_to_open_them() -> None:
    assert not Domains()
    with pytest.raises(Refused, match=r"only data: URLs are allowed here\..*--allow-image-domains"):
        Domains().check(WEB)


@pytest.mark.parametrize(
    "text",
    [
        *("https://a.example", "a.example/b", "", "a b", "*a.example", "a.*", "u@a.example"),
        *("127.1", "a.example:0", "a.example:65536", "a.example:x", "[::1", "**", "*.*.a.example"),
    ],
)
def test_an_entry_that_is_no_domain_is_an_error_of_the_start(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a domain|has no valid name|has a port"):
        Domains([text])
