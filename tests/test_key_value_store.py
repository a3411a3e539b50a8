"""Written values read back or count as missing: after kills, corruption, full disks, and with several processes."""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import struct
import time
from mmap import PAGESIZE

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


def exchanged(whole: bytes, key: bytes, other: bytes) -> bytes:
    """A store in which a key leads to the page of another key's value.

    In a leaf page of LMDB, the key of a large value is followed by the 8 bytes of its page number.
    """
    first, second = (
        next(
            found.end()
            for found in re.finditer(re.escape(one), whole, re.DOTALL)
            if 1 < int.from_bytes(whole[found.end() : found.end() + 8], "little") < len(whole) // PAGESIZE
        )
        for one in (key, other)
    )
    return whole[:first] + whole[second : second + 8] + whole[first + 8 :]


def test_a_page_that_leads_to_the_value_of_another_key(tmp_path):
    items = [("large", b"%016d" % key, random.Random(key).randbytes(9000)) for key in range(8)]
    KeyValueStore(tmp_path / "store", TABLES).put(items)
    whole = (tmp_path / "store" / "data.mdb").read_bytes()
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "data.mdb").write_bytes(exchanged(whole, b"%016d" % 2, b"%016d" % 5))
    damaged = KeyValueStore(tmp_path / "damaged", TABLES)
    assert [key for _, key, value in items if damaged.get("large", key) != value] == [b"%016d" % 2]
    assert damaged.get("large", b"%016d" % 2) is None


def structure(whole: bytes) -> list[int]:
    """Places of all bytes of a store outside of large values: headers, nodes and page numbers."""
    places, page = [], 0
    while page < len(whole) // PAGESIZE:
        flags, pages = struct.unpack_from("<HI", whole, page * PAGESIZE + 10)
        large = flags & 4
        places += range(page * PAGESIZE, page * PAGESIZE + (16 if large else PAGESIZE))
        page += pages if large else 1
    return places


@needs_fork
def test_a_flipped_bit_in_a_page_never_gives_another_value(tmp_path):
    """LMDB has no checksums: a damaged page may crash the process, but this is no silent error."""
    store = KeyValueStore(tmp_path / "store", TABLES)
    for first in range(0, 60, 20):
        store.put(batch(first, 20))
    whole, rng = (tmp_path / "store" / "data.mdb").read_bytes(), random.Random(0)
    (tmp_path / "damaged").mkdir()
    flips = [(place, 1 << rng.randrange(8)) for place in rng.choices(structure(whole), k=300)]

    def outcome(trial: int) -> bytes:
        place, bit = flips[trial]
        (tmp_path / "new").write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        (tmp_path / "new").replace(tmp_path / "damaged" / "data.mdb")  # so that the store is opened again
        try:
            there = found(KeyValueStore(tmp_path / "damaged", TABLES), 60)
        except StoreError:
            return b"error"
        except AssertionError:
            return b"wrong"
        return b"whole" if len(there) == 60 else b"parts"

    outcomes: list[bytes] = []
    while len(outcomes) < len(flips):
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            signal.alarm(60)
            for trial in range(len(outcomes), len(flips)):
                os.write(writer, outcome(trial))
            os._exit(0)
        os.close(writer)
        while result := os.read(reader, 5):
            outcomes.append(result)
        os.close(reader)
        if code := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
            assert code < 0 and code != -signal.SIGALRM
            outcomes.append(b"crash")
    assert b"wrong" not in outcomes
    assert outcomes.count(b"whole") > 100 and outcomes.count(b"parts") > 10 and outcomes.count(b"crash") < 10


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


def test_a_limit_on_address_space(tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 39, before[1]))
    try:
        with pytest.raises(StoreError, match="ulimit -v unlimited"):
            KeyValueStore(tmp_path / "store", TABLES).put(batch(0))
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    KeyValueStore(tmp_path / "store", TABLES).put(batch(0))


def test_a_disk_that_fills_up(small_disk):
    store = KeyValueStore(small_disk / "store", TABLES)
    first = 0
    with pytest.raises(StoreError, match=r"No space left|cannot be read or written"):
        while first < 100_000:
            store.put(batch(first, 50))
            first += 50
    assert first > 0 and found(store, first) == list(range(first)), "what was written before reads back"
