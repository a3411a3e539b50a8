"""What a writer writes, well-known readers read back; a killed writer goes on where it was."""

from __future__ import annotations

import csv
import json
import os
import signal
import time

import pyarrow.parquet
import pytest
from hypothesis import given, settings

from mimic_pl import Entity, Mention
from mimic_pl.errors import ConfigError, DataError, MachineError, StoreError
from mimic_pl.escaping import spreadsheet
from mimic_pl.formats import LINK_FORMATS, RecordError, open_writer, read_links, read_mentions
from mimic_pl.links import Link, Links
from tests.formats.some_links import plain, several
from tests.launch import FORK, needs_fork


def write(path, values, **options):
    with open_writer(path, **options) as writer:
        for value in values:
            writer.write(value)
    return path


def some(count, start=0):
    for number in range(start, count):
        mention = Mention(str(number), "Jordan", f"{number}: Jordan scored.", span=None)
        link = Link(Entity("Q1", "Michael Jordan"), number / 3, 0.5, {"text": -number / 7})
        yield Links(mention, (link,), 0.25, None, number)


@settings(deadline=None, max_examples=50)
@given(several)
def test_json_lines_round_trip(tmp_path_factory, values):
    path = write(tmp_path_factory.getbasetemp() / "round.jsonl", values)
    assert plain(list(read_links(path))) == plain(values)
    lines = path.read_bytes().split(b"\n")
    assert lines.pop() == b"" and len(lines) == len(values)
    for value, line in zip(values, map(json.loads, lines), strict=True):
        assert [found["id"] for found in line["candidates"]] == [found.entity.id for found in value]
        assert line["nil"] == value.is_nil


@settings(deadline=None, max_examples=50)
@given(several)
def test_csv_is_read_by_the_standard_library(tmp_path_factory, values):
    path = write(tmp_path_factory.getbasetemp() / "round.csv", values)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [(value, rank) for value in values for rank in (range(len(value)) if len(value) else [None])]
    assert len(rows) == len(expected)
    for row, (value, rank) in zip(rows, expected, strict=True):
        if value.mention is not None:
            mention = value.mention
            assert row["sentence"] == spreadsheet(mention.sentence) and row["id"] == spreadsheet(mention.id)
            assert mention.span is None or mention.sentence[int(row["start"]) : int(row["end"])] == mention.mention
        assert row["nil"] == str(value.is_nil).lower()
        assert row["error"] == ("" if value.error is None else spreadsheet(str(value.error)))
        assert not row["error"].startswith(("=", "+", "-", "@"))
        if rank is None:
            assert row["rank"] == row["entity"] == row["score"] == ""
        else:
            link = value[rank]
            assert row["rank"] == str(rank + 1) and row["entity"] == spreadsheet(link.entity.id)
            assert float(row["score"]) == link.score and row["name"] == spreadsheet(link.entity.name)
            assert {unit: float(row[f"score_{unit}"]) for unit in link.units} == link.units


@settings(deadline=None, max_examples=50)
@given(several)
def test_parquet_is_read_by_pyarrow(tmp_path_factory, values):
    path = write(tmp_path_factory.getbasetemp() / "round.parquet", values)
    rows = pyarrow.parquet.read_table(path).to_pylist(maps_as_pydicts="strict")
    assert len(rows) == len(values)
    for row, value in zip(rows, values, strict=True):
        assert [
            (found["id"], found["name"], found["score"], found["probability"], found["units"])
            for found in row["candidates"]
        ] == [(link.entity.id, link.entity.name, link.score, link.probability, link.units) for link in value]
        assert (row["number"], row["nil"], row["nil_probability"]) == (
            value.number,
            value.is_nil,
            value.nil_probability,
        )
        if value.mention is not None:
            assert (row["sentence"], row["mention"]) == (value.mention.sentence, value.mention.mention)
            assert tuple(row["golds"]) == value.mention.golds and row["fields"] == value.mention.fields


def test_the_output_is_a_list_of_mentions_again(tmp_path):
    mention = Mention("7", "Jordan", "Then Jordan scored.", ("Q1",), None, {}, {}, (5, 11))
    (again,) = read_mentions(write(tmp_path / "links.jsonl", [Links(mention)]))
    assert (again.id, again.mention, again.sentence, again.span, again.golds) == (
        "7",
        "Jordan",
        "Then Jordan scored.",
        (5, 11),
        ("Q1",),
    )


def test_links_of_predict_are_read(tmp_path):
    scores = {"overall": 2.5, "text": 1.0}
    line = {"id": "3", "mention": "J", "sentence": "J.", "candidates": [{"qid": "Q1", "name": "Jo", "scores": scores}]}
    (tmp_path / "links.jsonl").write_text(json.dumps(line) + "\n")
    (links,) = read_links(tmp_path / "links.jsonl")
    assert links.candidates == (Link(Entity("Q1", "Jo"), 2.5, None, {"text": 1.0}),)
    assert links.mention == Mention("3", "J", "J.")


def test_what_is_no_link_is_an_error_and_the_others_are_read(tmp_path):
    good = json.dumps({"id": "1", "mention": "J", "candidates": []})
    bad = ['{"id": "2"}', "oops", '{"candidates": [{"id": "Q1"}]}', '{"mention": 1e999, "candidates": []}']
    (tmp_path / "links.jsonl").write_text("\n".join([good, *bad, good]))
    found = list(read_links(tmp_path / "links.jsonl"))
    assert [isinstance(item, RecordError) for item in found] == [False, True, True, True, True, False]
    assert "links.jsonl, line 2 (id '2'): it has no list of 'candidates'" in str(found[1])
    assert "line 4: the candidate {'id': 'Q1'} has no id, name and score" in str(found[3])


def test_an_old_file_stays_until_the_new_one_is_complete(tmp_path):
    path = tmp_path / "links.csv"
    path.write_text("old")
    with pytest.raises(DataError, match="stop"), open_writer(path) as writer:
        writer.write(next(some(1)))
        raise DataError("stop")
    assert path.read_text() == "old"
    write(path, some(2))
    assert len(path.read_text().splitlines()) == 3
    assert sorted(file.name for file in tmp_path.iterdir()) == [".links.csv.lock", "links.csv"]


def test_two_writers_of_one_file(tmp_path):
    with (
        open_writer(tmp_path / "links.jsonl"),
        pytest.raises(StoreError, match="Another process is writing .*links.jsonl. Wait for it, or write to another"),
    ):
        open_writer(tmp_path / "links.jsonl")
    with open_writer(tmp_path / "a.jsonl"), open_writer(tmp_path / "b.jsonl"):
        pass  # other files of the folder can be written at the same time


def test_only_an_equal_job_is_resumed(tmp_path):
    def unfinished(job, resume=True):
        with pytest.raises(DataError), open_writer(tmp_path / "x.jsonl", resume=resume, job=job) as writer:
            before = writer.written
            writer.write(next(some(1)))
            raise DataError("stop")
        return before

    assert [unfinished("a"), unfinished("a"), unfinished("b"), unfinished("a"), unfinished("a", resume=False)] == [
        *(0, 1, 0, 2, 0)
    ]


@pytest.mark.parametrize("torn", [b"", b"{", b'{"number": 0, "candidates": []', b"\x00\x00\n", b"[]\n"])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "x.jsonl"
    with pytest.raises(DataError), open_writer(path, resume=True) as writer:
        for value in some(3):
            writer.write(value)
        raise DataError("stop")
    (part,) = tmp_path.glob(".x.jsonl.*.part")
    part.write_bytes(part.read_bytes() + torn)
    with open_writer(path, resume=True) as writer:
        assert writer.written == 3
        for value in some(5, start=writer.written):
            writer.write(value)
    assert path.read_bytes() == write(tmp_path / "whole.jsonl", some(5)).read_bytes()


@needs_fork
@pytest.mark.parametrize(
    ("name", "most"),
    [
        ("x.jsonl", 20),
        *(pytest.param(f"x.{name}", 100, marks=pytest.mark.slow) for name in ("jsonl", "csv", "parquet")),
    ],
)
def test_killed_writers_go_on(tmp_path, name, most):
    path = tmp_path / name
    total = 2000
    write(tmp_path / f"whole{path.suffix}", some(total))

    def work(most=total):
        with open_writer(path, resume=True) as writer:
            first = writer.written
            for value in some(total, start=first):
                if value.number == first + most:
                    time.sleep(600)
                writer.write(value)
                if value.number % 50 == 0:
                    writer.flush()

    kills = 0
    for attempt in range(most):
        process = FORK.Process(target=work, args=(total // 8,))  # however fast it is, it does not end at once
        process.start()
        time.sleep(0.004 * (attempt % 12))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        if path.exists():
            break
        kills += 1
    assert kills > 2
    if not path.exists():
        work()
    whole = tmp_path / f"whole{path.suffix}"
    if path.suffix == ".parquet":
        assert pyarrow.parquet.read_table(path).equals(pyarrow.parquet.read_table(whole))
    else:
        assert path.read_bytes() == whole.read_bytes()


def test_a_full_disk(small_disk):
    path = small_disk / "links.jsonl"
    write(path, some(1))
    before = path.read_bytes()
    with pytest.raises(MachineError, match="disk is full"), open_writer(path) as writer:
        for value in some(100_000):
            writer.write(value)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("name", "format", "says"),
    [("links", None, "does not say in which format"), ("links.xml", None, ".jsonl"), ("links.csv", "xml", "'xml'")],
)
def test_unknown_formats(tmp_path, name, format, says):
    with pytest.raises(ConfigError, match=says) as caught:
        open_writer(tmp_path / name, format)
    assert all(known in str(caught.value) for known in LINK_FORMATS)
    assert list(tmp_path.iterdir()) == []
