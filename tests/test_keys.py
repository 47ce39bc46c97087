"""Files of API keys: what is taken, what is refused, and what follows from a change."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
from pathlib import Path

import pytest

from tests.api.waiting import until
from tgi_async import followed_files
from tgi_async.errors import StartError
from tgi_async.keys import MOST_KEYS, ApiKey, KeyFile, load

TWO = """
keys:
  - name: team-a
    key: sk-aaa
    weight: 2
    max_concurrent_requests: 8
    max_tokens_per_minute: 1000
    max_total_tokens: 512
  - name: team-b
    sha256: {}
""".format(hashlib.sha256(b"sk-bbb").hexdigest())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "keys.yaml"
    found.write_text(TWO)
    return found


def test_a_key_has_a_name_a_weight_and_limits(path: Path) -> None:
    keys = KeyFile(str(path))
    assert keys.find(b"sk-aaa") == ApiKey(
        name="team-a",
        weight=2,
        max_concurrent_requests=8,
        max_tokens_per_minute=1000,
        max_total_tokens=512,
    )
    assert keys.find(b"sk-bbb") == ApiKey(name="team-b")


@pytest.mark.parametrize("given", [b"", b"sk-aa", b"sk-aaaa", b"SK-AAA", b"team-a", b"\xff"])
def test_what_is_no_key_is_not_found(path: Path, given: bytes) -> None:
    assert KeyFile(str(path)).find(given) is None
    digest = hashlib.sha256(b"sk-bbb").hexdigest().encode()
    assert KeyFile(str(path)).find(digest) is None


def test_the_file_may_be_json(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_text(json.dumps({"keys": [{"name": "one", "key": "k"}]}))
    assert KeyFile(str(path)).find(b"k") == ApiKey(name="one")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("keys: [", "neither YAML nor JSON in line 1"),
        ("", "Expected `object`, got `null`"),
        ("keys: 3", r"Expected `array`, got `int`"),
        ("keys: [{name: a}]", "a needs either `key` or `sha256`"),
        ("keys: [{name: a, key: k, sha256: " + "ab" * 32 + "}]", "either `key` or `sha256`"),
        ("keys: [{name: a, sha256: 12ab}]", "sha256"),
        ("keys: [{name: 'a b', key: k}]", "name"),
        ("keys: [{name: a, key: k, weight: 17}]", r"<= 16 .*weight"),
        ("keys: [{name: a, key: k, weight: 0}]", r">= 1 .*weight"),
        ("keys: [{name: a, key: k, max_total_tokens: many}]", "max_total_tokens"),
        ("keys: [{name: a, key: k, wieght: 2}]", "unknown field `wieght`"),
        ("keys: [{name: a, key: k}, {name: a, key: l}]", "a or its key is there twice"),
        ("keys: [{name: a, key: k}, {name: b, key: k}]", "b or its key is there twice"),
        ("[" * 5000, "keys.yaml"),
        ("keys: [{name: a, key: k}]\nkeys: []", "line 2 is there for the second time"),
        ("keys:\n- name: a\n  key: k\n  key: l", "line 4 is there for the second time"),
        ('{"keys": [],\n"keys": []}', "line 2 is there for the second time"),
        ('keys: [{name: a, key: "k\\n"}]', "`key` of a begins or ends with a space, or has a line"),
        ("keys: [{name: a, key: ' k'}]", "`key` of a begins or ends with a space"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_by_its_reason(
    path: Path, text: str, reason: str
) -> None:
    path.write_text(text)
    with pytest.raises(StartError, match=reason) as refused:
        load(str(path))
    assert "--api-keys-file" in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "keys:\n  - name: a\n    key: [sk-secret\n",
        "keys: [{sk-secret: {name: a}}]",
        'keys: [{"sk`\\nsecret": a}]',
        "keys: [{name: a, sk-secret: 1, sk-secret: 2}]",
        "keys: [{name: a, key: sk-secret }, {name: b, key: ' sk-secret'}]",
    ],
)
def test_a_reason_does_not_show_a_key(path: Path, text: str) -> None:
    path.write_text(text)
    with pytest.raises(StartError) as refused:
        load(str(path))
    assert "secret" not in str(refused.value)


def test_parts_of_the_file_may_be_anchored_and_merged(path: Path) -> None:
    path.write_text(
        "keys:\n- &a {name: a, key: k, weight: 3}\n- {<<: *a, name: b, key: l}\n"
        "- {name: c, key: m, weight: 2, <<: *a}\n"
    )
    assert [key.weight for key in load(str(path)).values()] == [3, 3, 2]


def test_a_file_is_bounded(path: Path) -> None:
    path.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(StartError, match="longer than 1048576 bytes"):
        load(str(path))
    entries = [{"name": f"n{n}", "key": f"k{n}"} for n in range(MOST_KEYS + 1)]
    path.write_text(json.dumps({"keys": entries}, separators=(",", ":")))
    with pytest.raises(StartError, match=f"<= {MOST_KEYS}"):
        load(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="cannot read"):
        KeyFile(str(tmp_path / "none"))


async def test_a_change_is_followed_and_a_broken_file_is_not(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(followed_files, "RELOAD_SECONDS", 0.01)
    caplog.set_level(logging.INFO)
    keys = KeyFile(str(path))
    following = asyncio.create_task(keys.follow())

    def replace(text: str) -> None:
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)

    replace("keys: [{name: c, key: sk-ccc}]")
    await until(lambda: keys.find(b"sk-ccc") is not None)
    assert keys.find(b"sk-aaa") is None
    replace("keys: [")
    await until(lambda: "stays in use" in caplog.text)
    assert keys.find(b"sk-ccc") == ApiKey(name="c")
    following.cancel()


@pytest.mark.parametrize(
    "text",
    [
        "keys:\n- {name: 2024-99-99, key: b}",
        'keys: !!int "x"',
        "keys: !!bool x",
        "keys: !!timestamp x",
        "keys: " + "9" * 5000,
        r'{"keys": [{"name": "a", "key": "\ud83d\ude00"}]}',
        r'{"keys": [{"name": "a\n", "key": "b"}]}',
    ],
)
def test_values_that_yaml_itself_does_not_survive_are_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "strange"
    file.write_text(text)
    with pytest.raises(StartError, match="strange"):
        load(str(file))
