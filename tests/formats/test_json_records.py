"""Streamed values and errors equal those of json on the whole file, for any chunk size."""

from __future__ import annotations

import json
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mimic_pl.errors import DataError
from mimic_pl.formats import json_records, read_records

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
chunks = st.integers(1, 9)
layouts = st.sampled_from([None, 0, 3])


def stream(path, chunk):
    with patch.object(json_records, "_CHUNK", chunk):
        return [value for _, _, value in read_records(path, "values")]


@given(st.lists(values, max_size=5), chunks, layouts, st.booleans(), st.sampled_from(["utf-8", "utf-8-sig"]))
def test_any_array(tmp_path_factory, array, chunk, indent, ascii_only, encoding):
    path = tmp_path_factory.getbasetemp() / "array.json"
    text = json.dumps(array, indent=indent, ensure_ascii=ascii_only)
    path.write_bytes(f" {text}\r\n".encode(encoding, "replace"))
    assert repr(stream(path, chunk)) == repr(json.loads(path.read_text("utf-8-sig")))  # repr, since nan != nan


@given(st.lists(values, max_size=5), chunks, layouts, st.data())
@example([1], 1, None, None).via("trailing garbage")
def test_errors_have_the_position_that_json_reports(tmp_path_factory, array, chunk, indent, data):
    path = tmp_path_factory.getbasetemp() / "broken.json"
    text = json.dumps(array, indent=indent)
    if data is None:
        text += "\n x"
    else:
        at = data.draw(st.integers(0, len(text)))
        text = text[:at] + data.draw(st.sampled_from(["", "]", ",", "x", '"', "\n", "1", "\x00"])) + text[at + 1 :]
    path.write_text(text)
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        with pytest.raises(DataError) as caught:
            stream(path, chunk)
        if "\0" in text[:2]:
            assert "begins with NUL bytes" in str(caught.value)
        elif "Write a file for each" in str(caught.value):
            pass  # an object of records and lists is refused before the place of the error is read
        elif "trailing comma" not in error.msg:  # since Python 3.13 json points to the comma instead of behind it
            assert str(caught.value).startswith(f"{path}, line {error.lineno}, column {error.colno}: {error.msg}.")
    else:
        if isinstance(whole, list):
            assert repr(stream(path, chunk)) == repr(whole)
        else:
            with pytest.raises(DataError, match="expected a list of records"):
                stream(path, chunk)


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_invalid_utf8_is_located_far_into_a_file(tmp_path, chunk):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf[\n" + b'"\xc3\xa9",\n' * 5_000 + b'"ab\xff"]')
    with pytest.raises(DataError, match=r"line 5002, column 4: the byte 0xff is not valid UTF-8"):
        stream(path, chunk)


def test_values_are_yielded_before_the_end_of_the_file_is_read(tmp_path):
    path = tmp_path / "x.json"
    path.write_text("[1, 22, 333, oops")
    with patch.object(json_records, "_CHUNK", 4):
        values = read_records(path, "values")
        assert [next(values)[2], next(values)[2], next(values)[2]] == [1, 22, 333]
        with pytest.raises(DataError, match="line 1, column 14: Expecting value"):
            next(values)


@pytest.mark.parametrize("chunk", [1, 4, 1 << 20])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ('{"id": 2, "name": ', "the record is incomplete at the end of its line"),
        ('{"id": 2,', "the record is incomplete"),
        ('{"id": 2', "the record is incomplete"),
        ('{"id": 2, "names": [1, ', "the record is incomplete"),
        ('{"id": 2, "name": "abc', ": Invalid control character"),
        ('{"id": 2}}', "not valid JSON: column 10: "),
        ("\x00garbage", "not valid JSON: column 1: Expecting value"),
        ('{"a": {"b": 1, "b": 2}}', "the key 'b' occurs twice in one object"),
    ],
)
@pytest.mark.parametrize("rest", ["", '{"id": 3}\n', '\n\n{"id": 3, "nested": {"id": 4}}\n{"id": 5}'])
def test_a_damaged_line_of_json_lines_leaves_the_others_readable(tmp_path, broken, says, rest, chunk):
    path = tmp_path / "broken.jsonl"
    path.write_text(f'{{"id": 1}}\n{broken}\n{rest}')
    with patch.object(json_records, "_CHUNK", chunk):
        rows = list(read_records(path, "values"))
    (damaged,) = [row for row in rows if isinstance(row[2], DataError)]
    if rest or "incomplete" not in says:  # at the end of the file, the end of the line says nothing
        assert damaged[:2] == ("line", 2) and says in str(damaged[2])
    expected = [json.loads(line) for line in ('{"id": 1}', *rest.split("\n")) if line]
    found = [row[2] for row in rows if row is not damaged]
    assert [value for value in found if value != {"id": 2}] == expected  # `{"id": 2}}` begins with a record
