from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest

from tgi_async.images import store as module
from tgi_async.images.family import Prepared
from tgi_async.images.store import OVERHEAD, NoRoom, ReadyImage, Store

PREPARED = Prepared(b"d" * 16, "<image>", 1, 3, 4, 5)
SIZE = 1000 + OVERHEAD


def put(store: Store, key: bytes, size: int = 1000) -> ReadyImage:
    path = store.new_path()
    Path(path).write_bytes(bytes(size))
    return store.put(key, PREPARED, path, [])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Room for three images."""
    return Store(str(tmp_path), 3 * SIZE)


def test_an_image_is_kept_and_is_one_object_while_it_is_held(store: Store) -> None:
    image = put(store, b"a")
    assert store.get(b"a") is image
    assert store.get(b"b") is None
    assert (image.prepared, image.size) == (PREPARED, SIZE)
    assert (store.n_bytes, store.held_bytes) == (SIZE, SIZE)
    path = image.path
    del image
    assert (store.n_bytes, store.held_bytes) == (SIZE, 0)
    again = store.get(b"a")
    assert again is not None
    assert again.path == path
    assert Path(path).stat().st_size == 1000
    assert store.held_bytes == SIZE


def test_what_was_used_longest_ago_goes_first(store: Store, tmp_path: Path) -> None:
    for key in (b"a", b"b", b"c"):
        put(store, key)
    store.get(b"a")
    put(store, b"d")
    assert [key for key in (b"a", b"b", b"c", b"d") if store.get(key)] == [b"a", b"c", b"d"]
    assert len(os.listdir(tmp_path)) == 3
    assert store.n_bytes == 3 * SIZE


def test_what_is_held_never_goes(store: Store, tmp_path: Path) -> None:
    held = [put(store, b"a"), put(store, b"b")]
    put(store, b"c")
    held.append(put(store, b"d"))
    assert store.get(b"c") is None
    with pytest.raises(NoRoom) as full:
        put(store, b"e")
    assert full.value.size == SIZE
    assert sorted(str(tmp_path / name) for name in os.listdir(tmp_path)) == sorted(
        image.path for image in held
    )
    del held[1]
    gc.collect()
    put(store, b"e")
    assert store.get(b"b") is None
    assert [Path(image.path).exists() for image in held] == [True, True]


def test_nothing_goes_where_room_would_not_be_enough(store: Store) -> None:
    held = put(store, b"a")
    put(store, b"b")
    with pytest.raises(NoRoom):
        store.make_room(2 * SIZE + 1)
    assert store.get(b"b") is not None
    store.make_room(2 * SIZE)
    assert store.get(b"b") is None
    assert store.get(b"a") is held


def test_the_second_of_two_equal_ones_is_not_kept(store: Store, tmp_path: Path) -> None:
    image = put(store, b"a")
    assert put(store, b"a") is image
    assert len(os.listdir(tmp_path)) == 1
    assert store.n_bytes == SIZE


def test_what_is_on_its_way_counts(store: Store) -> None:
    put(store, b"a")
    with store.reservation() as reserved:
        reserved.grow(SIZE)
        reserved.grow(10)
        assert (store.n_bytes, store.held_bytes) == (2 * SIZE, SIZE)
        reserved.grow(3 * SIZE)
        assert store.get(b"a") is None
        with pytest.raises(NoRoom):
            reserved.grow(3 * SIZE + 1)
        assert reserved.size == store.n_bytes == 3 * SIZE
    assert store.n_bytes == 0


def test_the_file_of_an_encoded_image_ends_with_its_last_use(tmp_path: Path) -> None:
    with Store(str(tmp_path), 1).encoded() as encoded:
        encoded.write(b"abc" * 100_000)
        with encoded:
            assert Path(encoded.path).read_bytes() == b"abc" * 100_000
        assert len(os.listdir(tmp_path)) == 1
    assert os.listdir(tmp_path) == []
    encoded.write(b"by a thread that did not know")
    assert os.listdir(tmp_path) == []


def test_a_place_that_others_fill_is_noticed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not store.is_full
    monkeypatch.setattr(module, "FULL", 1 << 60)
    assert store.is_full
    held = put(store, b"a")
    put(store, b"b")
    assert store.full().size == 0
    assert store.get(b"b") is None
    assert store.get(b"a") is held
    assert store.n_bytes == SIZE
