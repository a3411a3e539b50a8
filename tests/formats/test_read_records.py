"""The same records come out of every format; what cannot be read is an error with its place."""

from __future__ import annotations

import bz2
import csv
import gzip
import json
import os
import threading
from contextlib import suppress

import pyarrow
import pyarrow.csv
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import DataError
from mimic_pl.formats import SUFFIXES, read_records, source
from mimic_pl.formats.json_records import read_json

# Texts that careless readers change, and any others.
hard = st.sampled_from(
    ["007", "1e5", "NA", "null", "nan", "true", "", " ", '"', "a,b", "a;b", "\t", "x\ny", "é\r\n", "[a]"]
)
texts = hard | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)
rows = st.lists(
    st.fixed_dictionaries({"qid": texts.filter(str.strip), "name, or title": texts, "attr": texts}),
    min_size=1,
    max_size=4,
)
names = st.sampled_from(["x.csv", "x.tsv", "x.csv.gz", "x.csv.zst", "x.jsonl", "x.ndjson.bz2", "x.json", "x.json.gz"])


def read(path):
    return [row for _, _, row in read_records(path, "records")]


def compressed(path, content):
    if path.suffix == ".zst":
        content = pyarrow.compress(content, "zstd", asbytes=True)
    else:
        content = {".gz": gzip.compress, ".bz2": bz2.compress}.get(path.suffix, bytes)(content)
    path.write_bytes(content)
    return path


@settings(deadline=None)  # the first use of pyarrow takes a second
@given(rows, names, st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]))
def test_texts_are_the_same_in_every_format(tmp_path_factory, records, name, encoding):
    path = tmp_path_factory.getbasetemp() / name
    if ".csv" in name or ".tsv" in name:  # written by another library
        sink = pyarrow.BufferOutputStream()
        options = pyarrow.csv.WriteOptions(delimiter="\t" if ".tsv" in name else ",", quoting_style="all_valid")
        pyarrow.csv.write_csv(pyarrow.Table.from_pylist(records), sink, options)
        text = sink.getvalue().to_pybytes().decode()
    elif ".json." in f"{name}.":
        text = json.dumps(records, ensure_ascii=False)
    else:
        text = "\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n"
    assert read(compressed(path, text.encode(encoding))) == records


def test_parquet_keeps_lists_and_numbers(tmp_path):
    records = [
        {"id": 7, "image_list": ["a.jpg", "b.jpg"], "vector": [0.5, 1.0]},
        {"id": 8, "image_list": [], "vector": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), tmp_path / "x.parquet")
    assert read(tmp_path / "x.parquet") == records


RECORDS = [{"a": "x"}, {"a": "y"}, {"a": "z"}]
LAYOUTS = {
    "keys are ids": (
        {"Q1": {"a": "x"}, "Q2": {"a": "y", "id": "own"}},
        [{"a": "x", "id": "Q1"}, {"a": "y", "id": "own"}],
    ),
    "one list": ({"data": RECORDS}, RECORDS),
    "one list with a description": ({"version": 2, "info": {"by": "us"}, "data": RECORDS, "count": 3}, RECORDS),
    "one record": ({"a": "x", "images": ["1.jpg", "2.jpg"]}, [{"a": "x", "images": ["1.jpg", "2.jpg"]}]),
}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(("content", "expected"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layouts_of_objects(tmp_path, content, expected, indent):
    (tmp_path / "x.json").write_text(json.dumps(content, indent=indent))
    assert read(tmp_path / "x.json") == expected


@pytest.mark.parametrize("name", ["x.json", "x.jsonl", "x"])
def test_lines_with_a_record_each_in_a_file_of_any_name(tmp_path, name):
    (tmp_path / name).write_text("".join(f"{json.dumps({**record, 'nested': {'b': []}})}\r\n\n" for record in RECORDS))
    found = [(unit, number, row["a"]) for unit, number, row in read_records(tmp_path / name, "records")]
    assert found == [("line", 1, "x"), ("line", 3, "y"), ("line", 5, "z")]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_delimiters_and_lines_of_csv(tmp_path, delimiter):
    with (tmp_path / "x.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["a", "b"], ["two\nlines", "1,2;3\t4"], [], ["x", ""]])
    found = list(read_records(tmp_path / "x.csv", "records"))
    assert found == [("line", 2, {"a": "two\nlines", "b": "1,2;3\t4"}), ("line", 5, {"a": "x", "b": ""})]


RECORD = '{"id": 1}'
BROKEN = {
    "a comma at the end": ("x.json", f"[{RECORD},]", "line 1, column 12: "),
    "a key twice": ("x.json", '[{"a": 1},\n{"b": 1, "b": 2}]', "line 2: the key 'b' occurs twice in one object"),
    "a key twice, nested": ("x.json", '[{"a": {"b": 1, "b": 2}}]', "line 1: the key 'b' occurs twice in one object"),
    "several lists": (
        "x.json",
        f'{{"train": [{RECORD}], "test": [{RECORD}]}}',
        "several lists of records: 'train', 'test'",
    ),
    "another format": (
        "x.json",
        "id,name\n1,2\n",
        "line 1, column 1: Expecting value. A file that is not JSON has a name",
    ),
    "no records": ("x.json", '"text"', "contains a JSON str; expected a list of records"),
    "empty": ("x.csv", "", "is empty"),
    "only white space": ("x.json", " \n", "is empty"),
    "an open quote": ("x.csv", 'a,b\n1,"2\n3,4\n', "line 2: unexpected end of data. Quote each cell"),
    "a quote in a quoted cell": ("x.csv", 'a,b\n1,2\n"x"y,2\n', "line 3: .* Quote each cell"),
    "a huge cell": ("x.csv", f"a,b\n1,{'2' * 140_000}\n", "line 2: field larger .* JSON Lines has no such"),
    "two columns of one name": ("x.csv", "a,b,a\n1,2,3\n", "more than one column 'a'. Give each"),
    "no Parquet": ("x.parquet", "PAR1 and so on", "cannot be read as Parquet"),
    "not compressed": ("x.json.gz", "[]", "cannot be read: zlib"),
    "a folder": (".", None, "is a folder, not a file"),
    "a device": ("/dev/zero", None, "is a device, not a file"),
    "no such file": ("nowhere.csv", None, "does not exist"),
}


@pytest.mark.parametrize(("name", "content", "says"), BROKEN.values(), ids=BROKEN.keys())
def test_what_cannot_be_read_is_an_error_with_its_place(tmp_path, name, content, says):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert str(path) in str(caught.value)


def test_a_row_with_too_few_cells_leaves_the_others_readable(tmp_path):
    (tmp_path / "x.csv").write_text("a,b\n1,2\n3\n4,5\n")
    first, short, last = read(tmp_path / "x.csv")
    assert (first, last) == ({"a": "1", "b": "2"}, {"a": "4", "b": "5"})
    assert isinstance(short, DataError) and str(short) == "it has 1 cells, but the file has 2 columns."


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_ten_gigabytes_of_zeros_are_not_read(tmp_path, suffix):
    path = tmp_path / f"x{suffix}"
    with path.open("wb") as file:
        file.truncate(10 << 30)  # takes no space
    with pytest.raises(DataError, match="begins with NUL bytes|cannot be read as Parquet"):
        read(path)
    if suffix == ".json":
        with pytest.raises(DataError, match="begins with NUL bytes"):
            read_json(path)


@pytest.mark.parametrize(
    ("name", "content"), [("x.json.gz", b'["'), ("x.csv.gz", b"a,b\n"), ("x.jsonl.gz", b'{"a": "')]
)
def test_compressed_text_that_does_not_end(tmp_path, name, content, monkeypatch):
    monkeypatch.setattr("mimic_pl.formats.json_records._LONGEST", 1 << 22)
    path = compressed(tmp_path / name, content + b"a" * (1 << 25))
    with pytest.raises(DataError, match="has more than"):
        read(path)


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no pipes")


@needs_pipes
def test_a_pipe(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(source, "_PATIENCE", 0.2)
    os.mkfifo(tmp_path / "pipe")
    writer = threading.Timer(0.6, (tmp_path / "pipe").write_text, ["".join(f"{json.dumps(row)}\n" for row in RECORDS)])
    writer.start()
    assert read(tmp_path / "pipe") == RECORDS
    writer.join()
    (record,) = caplog.records
    assert "Waiting for data from the pipe" in record.message


@needs_pipes
def test_a_pipe_that_does_not_end(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "_PIPE_LIMIT", 1 << 20)
    os.mkfifo(tmp_path / "pipe")

    def write():
        with suppress(BrokenPipeError):
            (tmp_path / "pipe").write_text('{"a": "x"}\n' * 1_000_000)

    writer = threading.Thread(target=write)
    writer.start()
    with pytest.raises(DataError, match="does not end: .* Write its output to a file"):
        read(tmp_path / "pipe")
    writer.join()


def test_suffixes_are_those_of_the_formats():
    assert SUFFIXES[:6] == (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
    assert ".jsonl.zst" in SUFFIXES and ".parquet.gz" not in SUFFIXES
