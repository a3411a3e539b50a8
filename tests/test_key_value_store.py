"""Written values read back or count as missing: after kills, corruption, full disks, and with several processes."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from mimic_pl.errors import StoreError
from mimic_pl.key_value_store import KeyValueStore
from tests.launch import FORK, needs_fork

TABLES = ("small", "large")


def value(key: int) -> bytes:
    return random.Random(key).randbytes(100 + 37 * key % 5000)


def batch(first: int, count: int = 10):
    keys = range(first, first + count)
    return [(table, b"%08d" % key, value(key)) for key in keys for table in TABLES]


def found(store: KeyValueStore, count: int) -> list[int]:
    """Keys present in both tables, whose values have to be those that were written."""
    there = []
    for key in range(count):
        values = [store.get(table, b"%08d" % key) for table in TABLES]
        assert all(one in (None, value(key)) for one in values)
        if all(one is not None for one in values):
            there.append(key)
    return there


def test_reading_an_absent_store_creates_nothing(tmp_path):
    store = KeyValueStore(tmp_path / "store", TABLES)
    assert store.get("small", b"x") is None and store.count("large") == 0
    assert not (tmp_path / "store").exists(), "reading creates nothing"


def test_values_by_table_and_key(tmp_path):
    store = KeyValueStore(tmp_path / "store", TABLES)
    store.put(batch(0, 30))
    store.put([("small", b"%08d" % 3, b"other")])
    assert store.get("small", b"%08d" % 3) == b"other" and store.get("large", b"%08d" % 3) == value(3)
    assert store.count("small") == store.count("large") == 30
    again = KeyValueStore(tmp_path / "store", TABLES)  # the same folder in the same process
    assert again.get("large", b"%08d" % 29) == value(29) and again.get("large", b"%08d" % 30) is None


def test_a_folder_that_is_deleted_is_filled_again(tmp_path):
    store = KeyValueStore(tmp_path / "store", TABLES)
    store.put(batch(0))
    shutil.rmtree(tmp_path / "store")
    assert found(store, 10) == []
    store.put(batch(5, 3))
    assert found(store, 10) == [5, 6, 7]
    assert (tmp_path / "store" / "data.mdb").is_file()


def write_and_acknowledge(folder, acknowledged) -> None:
    store = KeyValueStore(folder, TABLES)
    for first in range(0, 10_000, 10):
        store.put(batch(first))
        os.write(acknowledged, b"%08d" % (first + 10))


@needs_fork
@pytest.mark.parametrize("trial", range(8))
def test_what_was_acknowledged_survives_a_kill(tmp_path, trial):
    reader, writer = os.pipe()
    process = FORK.Process(target=write_and_acknowledge, args=(tmp_path / "store", writer))
    process.start()
    os.close(writer)
    os.read(reader, 8)
    time.sleep(random.Random(trial).uniform(0, 0.1))
    process.kill()
    process.join()
    last = 10
    while text := os.read(reader, 8):
        last = int(text)
    os.close(reader)
    store = KeyValueStore(tmp_path / "store", TABLES)
    there = found(store, last + 10)
    assert there[:last] == list(range(last)), "nothing that was acknowledged is lost"
    assert len(there) in (last, last + 10), "a transaction is written completely or not at all"
    store.put(batch(last))
    assert found(store, last + 10) == list(range(last + 10))


@needs_fork
def test_many_processes_write_and_read(tmp_path):
    def write(first):
        store = KeyValueStore(tmp_path / "store", TABLES)
        for start in range(first, first + 100, 10):
            store.put(batch(start))
            found(store, 300)

    processes = [FORK.Process(target=write, args=(100 * number,)) for number in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert found(KeyValueStore(tmp_path / "store", TABLES), 300) == list(range(300))


def test_a_value_with_a_flipped_bit_counts_as_missing(tmp_path):
    KeyValueStore(tmp_path / "store", TABLES).put(batch(0, 60))
    whole = (tmp_path / "store" / "data.mdb").read_bytes()
    rng = random.Random(0)
    for trial in range(60):
        old = value(trial)
        place = rng.randrange(len(old))
        new = old[:place] + bytes([old[place] ^ (1 << rng.randrange(8))]) + old[place + 1 :]
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(whole.replace(old, new))
        assert found(KeyValueStore(folder, TABLES), 60) == [key for key in range(60) if key != trial]


def test_a_truncated_or_foreign_file(tmp_path):
    KeyValueStore(tmp_path / "store", TABLES).put(batch(0, 60))
    whole = (tmp_path / "store" / "data.mdb").read_bytes()
    contents = [whole[:size] for size in (100, 5000, len(whole) // 2, len(whole) - 1)] + [b"\0" * len(whole)]
    for trial, content in enumerate(contents):
        folder = tmp_path / str(trial)
        folder.mkdir()
        (folder / "data.mdb").write_bytes(content)
        with pytest.raises(StoreError, match=r"Delete the folder|cannot be read or written"):
            KeyValueStore(folder, TABLES).get("small", b"%08d" % 1)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be read or written"):
        KeyValueStore(tmp_path / "file" / "store", TABLES).put(batch(0))


def test_a_disk_that_fills_up(small_disk):
    store = KeyValueStore(small_disk / "store", TABLES)
    first = 0
    with pytest.raises(StoreError, match=r"No space left|cannot be read or written"):
        while first < 100_000:
            store.put(batch(first, 50))
            first += 50
    assert first > 0 and found(store, first) == list(range(first)), "what was written before reads back"
