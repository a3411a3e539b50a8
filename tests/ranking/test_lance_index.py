"""An index on disk: the numbers of the one in memory, whatever happens to the process that writes it."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
import torch

from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import DataError, MachineError, StoreError
from mimic_pl.ranking import IndexBuilder, LanceIndex, Ranker, Shard
from mimic_pl.ranking.columns import to_columns
from mimic_pl.ranking.lance_rows import lance
from mimic_pl.ranking.lance_writer import PartWriter, publish
from tests.faults.catalogue import told
from tests.launch import FORK, needs_fork
from tests.ranking.lance_parts import CPU, DESCRIPTION, batches, build, content, data_files, records, states
from tests.ranking.tables import pad, table_matcher, table_states

pytestmark = pytest.mark.own_process

LIMIT = "mimic_pl.ranking.lance_writer.MAX_ROWS_PER_FRAGMENT"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_it_holds_what_the_one_in_memory_holds(tmp_path, monkeypatch, dtype):
    monkeypatch.setattr(LIMIT, 30)
    in_memory = IndexBuilder(dtype).in_memory(records(95), batches(95), CPU)
    on_disk = build(tmp_path / "index", dtype=dtype)
    assert len(data_files(tmp_path / "index")) == 4
    assert len(on_disk) == 95 and on_disk.bytes_per_entity == in_memory.bytes_per_entity
    chosen = torch.tensor([94, 0, 33, 33])
    for size in (7, 95):
        for (order, a), (there, b) in zip(in_memory.blocks(size), on_disk.blocks(size), strict=True):
            assert torch.equal(order, there)
            assert torch.equal(a.state_hashes["text"], b.state_hashes["text"])
            assert torch.equal(a.finite, b.finite)
            for name in ("query", "mask"):
                assert torch.equal(a.states["text"][name], b.states["text"][name])
    for name in ("query", "mask"):
        assert torch.equal(in_memory.select(chosen).states["text"][name], on_disk.select(chosen).states["text"][name])
    assert on_disk.ids == in_memory.ids and on_disk.entities(torch.arange(95)) == records(95)
    assert on_disk.order_of(["Q90", "Q7"]).tolist() == [90, 7]
    assert on_disk.ids_of(torch.tensor([5, 3])) == ["Q5", "Q3"]
    with pytest.raises(DataError, match="no entity 'Q95'"):
        on_disk.order_of(["Q95"])


def test_every_type_of_number(tmp_path):
    generator, made = torch.Generator().manual_seed(0), {}
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16):
        made[str(dtype).partition(".")[2]] = torch.randint(0, 100, (20, 3, 2), generator=generator).to(dtype)
    made |= {"scalar": torch.arange(20), "bfloat16": torch.randn(20, 5).bfloat16(), "one": torch.randn(20, 1).double()}
    with PartWriter(tmp_path, 0, 1, 20, {}) as writer:
        writer.append(records(20), torch.arange(20), made)
        writer.flush()
        assert writer.format is not None
        publish(tmp_path, writer.format, writer.fragments)
    found, damaged = writer.format.states(lance().dataset(str(tmp_path)).to_table())
    assert damaged is None and found.keys() == made.keys()
    for name, tensor in made.items():
        assert found[name].dtype == tensor.dtype and torch.equal(found[name], tensor), name


def test_rows_may_be_stored_in_any_order(tmp_path):
    """As after entities were replaced: Lance moves them to the end."""
    shuffled = torch.randperm(95, generator=torch.Generator().manual_seed(0))
    expected, folder = build(tmp_path / "in order"), tmp_path / "shuffled"
    entities, (_, made) = records(95), states(0, 95)
    columns = to_columns(made, "float32")
    with PartWriter(folder, 0, 1, 95, {}) as writer:
        for order in shuffled.split(10):
            writer.append(
                [entities[n] for n in order], order, {name: column[order] for name, column in columns.items()}
            )
            writer.flush()
        assert writer.format is not None
        publish(folder, writer.format, writer.fragments)
    index = LanceIndex(folder)
    assert torch.equal(index.order, shuffled)
    assert content(index) == content(expected)
    chosen = torch.tensor([94, 0, 33])
    assert torch.equal(index.select(chosen).states["text"]["query"], expected.select(chosen).states["text"]["query"])
    local = Shard(torch.tensor([94, 3, 40]), 95, ProcessGroup(alone=True))
    part = LanceIndex(folder, shard=local)
    assert sorted(part.ids) == ["Q3", "Q40", "Q94"] and len(part) == 95
    assert {id: content(expected)[id] for id in part.ids} == content(part)


def test_ranking_from_disk_is_that_from_memory(tmp_path):
    tables = {"text": torch.randint(0, 4, (5, 60), generator=torch.Generator().manual_seed(0)).float()}
    in_memory, mentions = table_states(tables)
    _, block = next(in_memory.blocks(60))
    made = {name: dict(state.items()) for name, state in block.states.items()}
    on_disk = build(tmp_path / "index", 60, lambda first: [(torch.arange(60), made)])
    golds = pad([[3], [4, 59], [], [0], [31]])
    for index in (in_memory, on_disk):
        ranking = Ranker(pairs_per_block=40)(table_matcher({"text": 1.0}), mentions, golds, index)
        best = tables["text"].argsort(dim=1, descending=True, stable=True)[:, :10]
        assert torch.equal(ranking.top_entities, best)


def test_a_build_that_was_interrupted_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMIT, 20)
    for broken_at in (30, 40, 90):
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path, encode=batches(95, broken_at=broken_at))
        with pytest.raises(StoreError, match="is unfinished: [248]0 entities are written"):
            LanceIndex(tmp_path)
    kept = {path: path.stat().st_mtime_ns for path in data_files(tmp_path)}
    encoded = []

    def counted(first):
        for positions, made in batches(95)(first):
            encoded.append(int(positions[0]))
            yield positions, made

    index = build(tmp_path, encode=counted)
    assert encoded == [80, 90] and len(kept) == 4
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "nothing was written twice"
    assert content(index) == content(build(tmp_path.with_name("whole")))
    assert not (tmp_path / "_unfinished").exists()


def test_a_fragment_damaged_before_the_build_went_on_is_written_again(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMIT, 20)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, encode=batches(95, broken_at=90))
    (journal,) = (tmp_path / "_unfinished").glob("*.json")
    third = json.loads(journal.read_text())["fragments"][2]["fragment"]["files"][0]["path"]
    damage(tmp_path / "data" / third, 1000)
    encoded = []

    def counted(first):
        encoded.append(first)
        return batches(95)(first)

    assert content(build(tmp_path, encode=counted)) == content(build(tmp_path.with_name("whole")))
    assert encoded == [40] and len(data_files(tmp_path)) == 5


def test_another_models_index_is_refused(tmp_path):
    build(tmp_path, 20)
    for other, words in [
        ({"model": "b"}, "built for another model \\('a', and now it is 'b'\\)"),
        ({"text template": "{attr}"}, "another text template"),
        ({"model": "b", "text template": "x"}, "another model .* and another text template"),
    ]:
        with pytest.raises(StoreError, match=words):
            build(tmp_path, 20, description={**DESCRIPTION, **other})
    with pytest.raises(StoreError, match="another dtype"):
        build(tmp_path, 20, dtype="int8")
    with pytest.raises(StoreError, match="another number of entities \\(20, and now it is 21\\)"):
        build(tmp_path, 21)
    assert len(build(tmp_path, 21, dtype="int8", description={"model": "b"}, anew=True)) == 21
    assert len(LanceIndex(tmp_path, {"model": "b"})) == 21


def test_an_unfinished_index_of_another_model_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMIT, 20)
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, encode=batches(95, broken_at=50))
    before = data_files(tmp_path)
    with pytest.raises(StoreError, match="unfinished entity index, which was begun for another model"):
        build(tmp_path, description={**DESCRIPTION, "model": "b"})
    assert data_files(tmp_path) == before
    assert len(build(tmp_path, description={"model": "b"}, anew=True)) == 95
    assert not {*before} & {*data_files(tmp_path)}


def test_nothing_there(tmp_path):
    with pytest.raises(StoreError, match="nowhere does not exist"):
        LanceIndex(tmp_path / "nowhere")


def slow_build(folder: Path, pause: float) -> None:
    torch.set_num_threads(1)  # the threads of the forked process are not there

    def encode(first):
        for batch in batches(95, 5)(first):
            time.sleep(pause)
            yield batch

    build(folder, encode=encode)


def started(folder, pause):
    assert FORK is not None
    process = FORK.Process(target=slow_build, args=(folder, pause))
    process.start()
    return process


@needs_fork
def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    """Killed at any moment: what a journal names is there, and the same command ends as if nothing had happened."""
    monkeypatch.setattr(LIMIT, 5)
    rng, seen, built = random.Random(0), set(), []
    for trial in range(6):
        folder = tmp_path / str(trial)
        process = started(folder, 0.005)
        end = time.monotonic() + 60
        count = rng.randrange(19)
        while len(data_files(folder)) <= count and process.is_alive() and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.02))
        process.kill()
        process.join()
        named = [e["rows"] for p in folder.glob("_unfinished/*.json") for e in json.loads(p.read_text())["fragments"]]
        seen.add(sum(named))
        built.append(folder)
    assert any(0 < rows < 95 for rows in seen), "no trial was killed halfway"
    whole = content(build(tmp_path / "whole"))
    for folder in built:
        encoded = []

        def counted(first, encoded=encoded):
            encoded.append(first)
            return batches(95, 5)(first)

        index = build(folder, encode=counted)
        assert content(index) == whole
        assert len(index) == 95 and len(data_files(folder)) == 19, "no fragment was left over"


@needs_fork
def test_a_second_writer_of_an_index_is_refused_and_a_killed_one_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMIT, 5)
    process = started(tmp_path, 0.05)
    while not data_files(tmp_path):
        time.sleep(0.001)
    with told("test_a_second_writer_of_an_index_is_refused_and_a_killed_one_forgotten"):
        build(tmp_path, anew=True)
    process.kill()
    process.join()
    assert len(build(tmp_path, encode=batches(95, 5))) == 95


@needs_fork
def test_a_fork_of_a_process_that_has_used_lance_is_told(tmp_path):
    build(tmp_path)
    assert FORK is not None
    receiver, sender = FORK.Pipe(duplex=False)

    def work():
        try:
            LanceIndex(tmp_path)
        except MachineError as error:
            sender.send(str(error))

    process = FORK.Process(target=work)
    process.start()
    assert "forked from one that has used it" in receiver.recv()
    process.join()


def damage(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 64
    path.write_bytes(content)


def read_everything(folder):
    index = LanceIndex(folder)
    return content(index)


def test_one_flipped_byte_of_an_index(tmp_path, monkeypatch):
    """Each in a row, among what says where rows are, or where nothing is: an error, or the very same numbers."""
    monkeypatch.setattr(LIMIT, 50)
    build(tmp_path)
    whole, rng, told_of = read_everything(tmp_path), random.Random(0), 0
    for path in [*data_files(tmp_path), *(tmp_path / "_versions").glob("*.manifest")]:
        before = path.read_bytes()
        for place in [rng.randrange(len(before)) for _ in range(40)]:
            damage(path, place)
            try:
                assert read_everything(tmp_path) == whole
            except StoreError as error:
                told_of += 1
                assert "is damaged" in str(error) or "is missing" in str(error) or "bytes where" in str(error), error
            path.write_bytes(before)
    assert told_of > 60
    assert read_everything(tmp_path) == whole


def test_a_damaged_row_is_named(tmp_path):
    index = build(tmp_path)
    (path,) = data_files(tmp_path)
    bits = states(33, 34)[1]["text"]["query"].numpy().tobytes()
    damage(path, path.read_bytes().index(bits) + 5)
    index.select(torch.arange(20))
    with told("test_a_damaged_row_is_named"):
        index.select(torch.tensor([3, 33]))
    with pytest.raises(StoreError, match="the entity 'Q33' with the order number 33"):
        list(LanceIndex(tmp_path).blocks(50))
    name = path.read_bytes().index(b"entity 7")
    damage(path, name + 2)
    with pytest.raises(StoreError, match="the entity 'Q7' with the order number 7"):
        LanceIndex(tmp_path).entities(torch.arange(95))


def test_a_data_file_that_is_missing_or_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(LIMIT, 50)
    index = build(tmp_path)
    path = data_files(tmp_path)[0]
    before = path.read_bytes()
    for kept in (0, 200, len(before) - 1):
        _, block = next(LanceIndex(tmp_path).blocks(95))
        whole = block.states["text"]["query"].clone()
        os.truncate(path, kept)
        assert torch.equal(block.states["text"]["query"], whole), "a map would be gone"
        with pytest.raises(StoreError, match=f"{path.name} has {kept} bytes where the entity index needs"):
            LanceIndex(tmp_path)
        path.write_bytes(before)
    os.truncate(path, 2000)
    with told("test_a_data_file_that_is_missing_or_cut_off"):
        list(index.blocks(95))
    path.unlink()
    with pytest.raises(StoreError, match=f"{path.name} is missing, a part of the entity index"):
        LanceIndex(tmp_path)


def test_a_disk_that_fills_up_under_an_index(small_disk, monkeypatch):
    """Another program takes the room; once there is room again, the build goes on."""
    monkeypatch.setattr(LIMIT, 50)
    taken, folder = small_disk / "taken", small_disk / "index"

    def encode(first):
        for positions, made in batches(300)(first):
            if positions[0] == 150:
                free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
                taken.write_bytes(bytes(free - 8_000))
            yield positions, made

    with told("test_a_disk_that_fills_up_under_an_index"):
        build(folder, 300, encode)
    taken.unlink()
    encoded = []

    def counted(first):
        encoded.append(first)
        return batches(300)(first)

    assert len(build(folder, 300, counted)) == 300
    assert encoded == [150]


def test_no_room_for_an_index_is_told_before(small_disk):
    with pytest.raises(StoreError, match="entity index needs 4.[0-9] MB in .*, but only .* are free"):
        build(small_disk / "index", 10_000)
    assert not data_files(small_disk / "index")


def test_a_number_in_the_index_that_is_none(tmp_path):
    scores = torch.zeros(3, 20)
    scores[2, 13] = float("nan")
    index, mentions = table_states({"text": scores})
    made = {name: dict(state.items()) for name, state in index.select(torch.arange(20)).states.items()}
    stored = build(tmp_path, 20, lambda _: [(torch.arange(20), made)])
    with told("test_a_number_in_the_index_that_is_none"):
        Ranker()(table_matcher({"text": 1.0}), mentions, pad([[0], [1], [2]]), stored)


def resident() -> float:
    """Memory of this process in MB, with the pages of mapped files that it has touched."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) / 1000


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_memory_stays_flat(tmp_path):
    """390 MB of states, streamed and picked from all over."""
    made = {"text": {"x": torch.arange(2000, dtype=torch.int64)[:, None].expand(2000, 9728).to(torch.int8)}}

    def encode(first):
        for start in range(0, 40_000, 2000):
            yield torch.arange(start, start + 2000), made

    index = build(tmp_path, 40_000, encode)
    before, largest, total = resident(), 0.0, 0
    for _, block in index.blocks(1000):
        total += int(block.states["text"]["x"][:, ::512].sum())
        largest = max(largest, resident())
    for _ in range(20):
        index.select(torch.randint(40_000, (128,)))
        largest = max(largest, resident())
    assert total == int(made["text"]["x"][:, ::512].sum()) * 20
    print(f"{largest - before:.0f} MB more resident")
    assert largest - before < 200
