"""Turn valid requests into ones that no client would send: by bytes, by words, and by values.

All is drawn from the `random.Random` that is given, so a seed gives the same requests again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from random import Random
from typing import Any

from tests.attacks.corpus import READ, VALID, Sent

ODD_BYTES = b"\x00\r\n\t :;,\"'\\/*%&=?#[]{}()<>0123456789-+.eEaAxX\x7f\x80\xc0\xed\xf0\xff"
ODD_WORDS: tuple[bytes, ...] = (
    *(b"null", b"true", b"false", b"{}", b"[]", b'""', b"0", b"-1", b"1e400", b"-0.0", b"NaN"),
    *(b"Infinity", b"1e-400", b"2147483648", b"4294967296", b"9223372036854775808", b"0.5"),
    *(b"18446744073709551616", b"9" * 400, b"1" + b"0" * 5000, b"0." + b"0" * 400 + b"1", b"0x1"),
    *(b'"\\u0000"', b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\uFFFF"', b'"\xff"', b'"\xed\xa0\x80"'),
    *(b'"<|im_start|>"', b'"{{ 7*7 }}"', b'"1"', b'"nan"', b'"' + b"a" * 3000 + b'"', b"[[[[1]]]]"),
    *(b'{"$ref": "#"}', b'{"type": "json"}', b'{"": ""}', b'"(a+)+$"', b'"(?=a)"', b'"data:,"'),
    *(b"[" * 200 + b"]" * 200, b'{"a":' * 150 + b"1" + b"}" * 150, b"1.7976931348623157e308"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 0.5, -0.5, 1e308, -1e308, 5e-324, 2**31, 2**32, 2**53, 2**63),
    *(
        2**64,
        -(2**63),
        -(2**64),
        10**30,
        "",
        " ",
        "a",
        "1",
        "-1",
        "auto",
        "\0",
        "\ud800",
        "\U0001f600",
    ),
    *(
        "a" * 2000,
        "<|im_end|>",
        "\u202e",
        "%s%n",
        "../../etc/passwd",
        "http://127.0.0.1/",
        "\r\nX: y",
    ),
    *([], {}, [None], [[]], [{}], {"": None}, ["a"] * 300, [0] * 300, {"type": "text"}),
    *({"type": "json", "value": {}}, {"type": "regex", "value": ""}, {"a": {"$ref": "#/a"}}),
    *({"type": "object"}, {"type": "function"}, {"type": "json_schema"}, {"type": "json_object"}),
)
_WORD = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?|true|false|null|[{}\[\],:]')
HEADERS = (
    b"Host: a",
    b"Content-Type: application/json",
    b"Accept: text/event-stream",
    b"Authorization: Bearer x",
    b"X-Request-Id: r1",
    b"X-Compute-Type: y",
    b"Origin: null",
    b"Traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    b"Expect: 100-continue",
    b"Cookie: a=b",
    b"Forwarded: for=1.2.3.4",
    b"X-Forwarded-For: 1.2.3.4",
    b"Last-Event-ID: 1-2-3",
    b"Last-Event-ID: " + b"A" * 20 + b".9999999,1.end.AAAAAAAA",
    b"X-Request-Timeout: nan",
    b"X-Request-Timeout: 1e400",
    b"X-Request-Timeout: 0.01",
    b"User-Agent: curl/8",
)
METHODS = (b"POST", b"GET", b"HEAD", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"post")


def mutated(random: Random, *, whole: bool = False) -> bytes:
    """A request, head and body, of a valid one that was changed in one to four ways.

    With `whole`, its end is where it says that it is.
    """
    sent = random.choice(VALID)
    content = sent.content()
    way = random.random()
    if way < 0.45:
        content = _encoded(random, _structural(random, sent.body))
    elif way < 0.75:
        content = _several(random, content, word)
    elif way < 0.9 or whole:
        content = _several(random, content, byte)
    else:
        return _several(random, _request(random, sent, content), byte)
    return _request(random, sent, content, plain=random.random() < 0.8)


def resumed(random: Random, request: bytes, events: bytes) -> bytes:
    """The same request again, to go on behind one of these events, or nearly so."""
    id = random.choice(re.findall(rb"^id: (.+)$", events, re.M))
    if random.random() < 0.5:
        id = byte(random, id).replace(b"\r", b"").replace(b"\n", b"") or id
    return request.replace(b"\r\n", b"\r\nLast-Event-ID: %b\r\n" % id, 1)


def _request(random: Random, sent: Sent, content: bytes, *, plain: bool = True) -> bytes:
    """With the header `Connection: close`, unless it is odd."""
    method, path = b"POST", sent.path.encode()
    lines = [b"Host: a", b"Content-Type: application/json"]
    if not plain:
        method = random.choice(METHODS)
        path = random.choice((path, random.choice(READ).encode(), path + b"?a=%00", b"*", b"/%ff"))
        for _ in range(random.randint(0, 4)):
            lines.insert(random.randint(0, len(lines)), random.choice(HEADERS))
    lines.append(b"Connection: close")
    if random.random() < 0.1:
        size = random.randint(1, 40)
        pieces = [content[i : i + size] for i in range(0, len(content), size)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
        lines.append(b"Transfer-Encoding: chunked")
    else:
        body = content
        lines.append(b"Content-Length: %d" % len(content))
    return b"%b %b HTTP/1.1\r\n%b\r\n\r\n%b" % (method, path, b"\r\n".join(lines), body)


def _several(random: Random, data: bytes, change: Callable[[Random, bytes], bytes]) -> bytes:
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        data = change(random, data) or data
    return data


def byte(random: Random, data: bytes) -> bytes:
    """Flip, insert, take out, repeat or cut."""
    place = random.randrange(len(data))
    length = min(random.choice((1, 1, 2, 5, 20)), len(data) - place)
    piece = data[place : place + length]
    match random.randrange(6):
        case 0:
            return (
                data[:place]
                + bytes((data[place] ^ (1 << random.randrange(8)),))
                + data[place + 1 :]
            )
        case 1:
            return data[:place] + bytes((random.choice(ODD_BYTES),)) + data[place + 1 :]
        case 2:
            return data[:place] + bytes((random.choice(ODD_BYTES),)) + data[place:]
        case 3:
            return data[:place] + data[place + length :]
        case 4:
            return data[:place] + piece * random.choice((2, 3, 50)) + data[place + length :]
    return data[:place]


def word(random: Random, data: bytes) -> bytes:
    """Replace, take out, repeat or swap a word of JSON."""
    words = list(_WORD.finditer(data))
    if not words:
        return data
    one, other = random.choice(words), random.choice(words)
    put = {
        0: random.choice(ODD_WORDS),
        1: random.choice(ODD_WORDS),
        2: b"",
        3: one[0] + one[0],
        4: other[0],
    }[random.randrange(5)]
    return data[: one.start()] + put + data[one.end() :]


def _encoded(random: Random, value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=random.random() < 0.7)
    return text.encode(errors="surrogatepass")


def _structural(random: Random, body: Any) -> Any:
    value = json.loads(json.dumps(body))
    for _ in range(random.choice((1, 1, 1, 2, 4))):
        value = structure(random, value)
    return value


def structure(random: Random, value: Any) -> Any:
    """Change a value somewhere inside: another one, one less, one of another request."""
    if isinstance(value, dict) and value and random.random() < 0.8:
        name = random.choice(list(value))
        match random.randrange(8):
            case 0:
                return {key: one for key, one in value.items() if key != name}
            case 1:
                return value | {random.choice(ODD_KEYS): random.choice(ODD_VALUES)}
            case 2:
                donor = random.choice(VALID).body
                key = random.choice(list(donor))
                return value | {key: donor[key]}
        return value | {name: structure(random, value[name])}
    if isinstance(value, list) and value and random.random() < 0.8:
        place = random.randrange(len(value))
        match random.randrange(6):
            case 0:
                return value[:place] + value[place + 1 :]
            case 1:
                return value[:place] + [value[place]] * random.choice((2, 3, 40)) + value[place:]
        return [*value[:place], structure(random, value[place]), *value[place + 1 :]]
    if random.random() < 0.1:
        return {random.choice(ODD_KEYS): value}
    if random.random() < 0.1:
        return [value]
    return random.choice(ODD_VALUES)


ODD_KEYS = (
    *("", "a", "\0", "\ud800", "$ref", "type", "inputs", "prompt", "messages", "stream", "n"),
    *("parameters", "__class__", "content", "x" * 300, "grammar", "logprobs", "echo", "\r\nX"),
    *("min_tokens", "response_format", "json_schema", "regex", "ebnf", "structural_tag", "tools"),
    *("guided_grammar", "guided_regex", "continue_final_message", "reasoning", "thinking", "name"),
)
