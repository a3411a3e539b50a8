"""Every variant of the published layout is read; everything else is a DataError with its location."""

from __future__ import annotations

import json
from dataclasses import replace
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.data import Entity, MELDataModule, Mention, RichpediaMEL
from mimic_pl.data.malformed_records import MalformedRecordsError
from mimic_pl.data.reader import read_entities, read_mentions
from mimic_pl.errors import DataError, MimicError
from tests.shared import SHARED, needs_shared

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
names = st.text("abc%é _.-", min_size=1, max_size=8).filter(lambda name: ".." not in name)
entities = st.builds(Entity, words, words, st.fixed_dictionaries({"attr": words}), st.lists(names).map(tuple))
mentions = st.builds(
    Mention,
    words.filter(bool),
    words,
    words,
    st.lists(words.filter(lambda gold: gold and gold.lower() != "nil"), unique=True).map(tuple),
    st.none() | names,
    st.fixed_dictionaries({"entities": words}),
)


def write(path, content):
    path.write_text(json.dumps(content))
    return path


@given(st.lists(entities, min_size=1, max_size=5, unique_by=lambda entity: entity.id), st.randoms())
def test_entities_round_trip_in_the_order_of_their_ids(tmp_path_factory, records, random):
    rows = [
        {"id": i, "qid": e.id, "entity_name": quote(e.name), **e.fields, "image_list": list(e.images)}
        for i, e in enumerate(records)
    ]
    random.shuffle(rows)
    assert read_entities(write(tmp_path_factory.getbasetemp() / "kb.json", rows)) == records


@given(st.lists(mentions, max_size=5))
def test_mentions_round_trip(tmp_path_factory, records):
    rows = [
        {
            "id": m.id,
            "mentions": quote(m.mention),
            "sentence": m.sentence,
            "answer": list(m.golds),
            "imgPath": m.image,
            **m.fields,
        }
        for m in records
    ]
    assert read_mentions(write(tmp_path_factory.getbasetemp() / "mentions.json", rows)) == records


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "qid", "entity_name", "image_list", "mentions", "sentence", "answer", "imgPath"]),
            inner,
        )
    ),
    max_leaves=20,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_other_content_is_a_mimic_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "any.json"
    path.write_bytes(content)
    for read in (read_entities, read_mentions):
        try:
            read(path)
        except MimicError as error:
            assert str(path) in str(error)


@pytest.mark.parametrize(
    ("answer", "golds"),
    [("nil", ()), ("NIL", ()), ("", ()), (None, ()), ("Q1", ("Q1",)), (["Q1", "Q2", "Q1"], ("Q1", "Q2"))],
)
def test_answers(tmp_path, answer, golds):
    row = {"id": 7, "mentions": "a%20b%C3%A9", "sentence": "100%25", "answer": answer, "imgPath": ""}
    (mention,) = read_mentions(write(tmp_path / "x.json", [row]))
    assert mention == Mention("7", "a bé", "100%25", golds)  # a sentence is not decoded


@pytest.mark.parametrize("images", [None, "", [], [None, ""]])
def test_no_images(tmp_path, images):
    row = {"id": 0, "qid": "Q", "entity_name": "n", "image_list": images}
    assert read_entities(write(tmp_path / "x.json", [row]))[0].images == ()


def test_an_image_may_be_named_by_its_url(tmp_path):
    name = "https://upload.wikimedia.org/a/ab/S%C3%A3o.svg/300px-x.svg.png"
    row = {"id": 3, "mentions": "m", "sentence": "s", "imgPath": name}
    assert read_mentions(write(tmp_path / "x.json", [row]))[0].image == name


@pytest.mark.parametrize(
    "name", ["../x.jpg", "a/../../x.jpg", "/etc/passwd", "C:\\x.jpg", "..\\x.jpg", "a\0b", "\ud800"]
)
def test_an_image_outside_of_the_folder(tmp_path, name):
    row = {"id": 3, "mentions": "m", "sentence": "s", "imgPath": name}
    what = "(is outside the data folder|is not a file name|unpaired surrogate)"
    with pytest.raises(DataError, match=rf"x\.json, record 0 \(id 3\).*{what}"):
        read_mentions(write(tmp_path / "x.json", [row]))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'[\n{"id": 1,}]', "line 2, column 10"),
        (b'[\n\n "a\xff"]', "line 3, column 4: the byte 0xff"),
        (b'["\x00"]', "line 1, column 3"),
        (b"{}", "expected a list of records"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b"1" * 5000 + b"]", "digits"),
    ],
)
def test_malformed_files_are_errors_with_a_location(tmp_path, content, says):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(DataError, match=says):
        read_mentions(tmp_path / "x.json")


def test_all_problems_are_reported_and_the_other_records_are_read(tmp_path):
    good = {"id": 0, "qid": "Q0", "entity_name": "n"}
    rows = [good, {"id": 1, "qid": 5}, 3, {**good, "id": 2}]
    with pytest.raises(MalformedRecordsError) as caught:
        read_entities(write(tmp_path / "x.json", rows))
    assert [str(problem)[:8] for problem in caught.value.problems] == ["record 1", "record 2", "record 3"]
    assert [entity.id for entity in caught.value.records] == ["Q0"]


def test_problems_come_in_the_order_of_the_records(tmp_path):
    twice = {"id": 7, "qid": "Q0", "entity_name": "first"}
    rows = [{**twice, "id": 9}, twice, {"id": 1, "qid": 5}, {**twice, "qid": "Q1", "id": 2}, {**twice, "id": 3}]
    with pytest.raises(MalformedRecordsError) as caught:
        read_entities(write(tmp_path / "x.json", rows))
    assert [str(problem)[:15] for problem in caught.value.problems] == [
        f"record {n} (id {i})" for n, i in ((1, 7), (2, 1), (4, 3))
    ]
    assert all("'Q0' is also record 0" in caught.value.problems[place].message for place in (0, 2))
    assert [entity.id for entity in caught.value.records] == ["Q1", "Q0"]


@pytest.mark.parametrize("ids", [{"Q0": 0}, {"Q0": 0, "Q1": 2}, {"Q0": 0, "Q1": 1, "Q2": 2}])
def test_qid2id_disagrees(tmp_path, ids):
    kb = write(tmp_path / "kb.json", [{"id": i, "qid": f"Q{i}", "entity_name": "n"} for i in range(2)])
    with pytest.raises(DataError, match="'Q[12]'.*remove qid2id.json"):
        read_entities(kb, write(tmp_path / "qid2id.json", ids))


ENTITY = {"id": 0, "qid": "Q0", "entity_name": "n", "attr": "a", "image_list": []}
MENTION = {"id": 0, "mentions": "m", "sentence": "s", "answer": "Q0", "imgPath": ""}


def test_numbers_and_lists_with_an_obvious_text_are_taken_and_reported_once(tmp_path, caplog):
    rows = [
        {**ENTITY, "qid": 42, "entity_name": 1984},
        {**ENTITY, "qid": "Q1", "entity_name": 1985, "attr": ["a", "b", 3]},
        {**ENTITY, "qid": "Q2", "attr": 0.5},
    ]
    found = read_entities(write(tmp_path / "x.json", rows), texts=("attr",))
    assert [(entity.id, entity.name, entity.fields["attr"]) for entity in found] == [
        ("42", "1984", "a"), ("Q1", "1985", "a, b, 3"), ("Q2", "n", "0.5"),
    ]  # fmt: skip
    messages = sorted(record.message.removeprefix(f"{tmp_path / 'x.json'}: ") for record in caplog.records)
    assert messages == [
        "a list as 'attr' is taken as text (records: 1; the first is record 1).",
        "a number as 'attr' is taken as text (records: 1; the first is record 2).",
        "a number as 'entity_name' is taken as text (records: 2; the first is record 0).",
        "a number as 'qid' is taken as text (records: 1; the first is record 0).",
    ]
    (mention,) = read_mentions(write(tmp_path / "y.json", [{**MENTION, "answer": [42, "Q1"]}]))
    assert mention.golds == ("42", "Q1")


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (True, "it is a boolean, True. Write it as text."),
        (float("nan"), "it is NaN. Write an empty text where there is none."),
        (float("inf"), "it is a number, inf. Write it as text."),
        ({"en": "x"}, "it is an object, {'en': 'x'}. Write it as text."),
        ([["x"]], r"it is a list, \[\['x'\]\]. Write it as text."),
        ([None], r"it is a list, \[None\]. Write it as text."),
    ],
)
@pytest.mark.parametrize("key", ["attr", "entity_name"])
def test_a_field_that_is_not_text(tmp_path, key, value, says):
    rows = [{**ENTITY, "id": i, "qid": f"Q{i}", **({key: value} if i > 2 else {})} for i in range(9)]
    path = write(tmp_path / "x.json", rows)
    with pytest.raises(DataError, match=rf"record 3 \(id 3\): '{key}' is not text: {says} .The same in 5 more"):
        read_entities(path, texts=("name", "attr"))
    if key == "attr":  # what no template needs is left out
        assert all("attr" not in entity.fields for entity in read_entities(path)[3:])


def test_null_is_an_empty_field_but_not_a_name(tmp_path):
    path = write(tmp_path / "x.json", [{**ENTITY, "attr": None}])
    assert read_entities(path, texts=("attr",))[0].fields["attr"] == ""
    with pytest.raises(DataError, match="'entity_name' is not text: it is null. Write an empty text where"):
        read_entities(write(path, [{**ENTITY, "entity_name": None}]))
    assert read_entities(write(path, [{**ENTITY, "entity_name": ""}]))[0].name == ""


@pytest.mark.parametrize("value", [7.0, ["Q1"]])
def test_an_id_is_not_a_float(tmp_path, value):
    with pytest.raises(DataError, match="'qid' is a (number|list), .*; expected text or an integer"):
        read_entities(write(tmp_path / "x.json", [{**ENTITY, "qid": value}]))


def test_a_column_that_is_not_there(tmp_path):
    (tmp_path / "x.csv").write_text("qid,name,attr\n" + "".join(f"Q{i},n,a\n" for i in range(400)))
    with pytest.raises(DataError) as caught:
        read_entities(tmp_path / "x.csv")
    assert str(caught.value).removeprefix(str(tmp_path)) == (
        "/x.csv, line 2: there is no 'entity_name'. If that is 'name', rename it. The record has: 'attr', "
        "'name', 'qid'. (The same in 399 more.)"
    )


def test_ids_and_lists_of_csv(tmp_path):
    (tmp_path / "kb.csv").write_text(
        "id,qid,entity_name,attr,image_list,vector\n"
        '10,007,null,NA,"[""a.jpg"", ""b,c.jpg""]","[1, 2]"\n'
        "9,1e5,n%20m,,\"['a.jpg', 'b.jpg']\",\"[3, 4]\"\n"  # as pandas writes a list
        '8,NA,n,x,[1].jpg,"[5, 6]"\n'
    )
    found = read_entities(tmp_path / "kb.csv", arrays=("vector",))
    assert [replace(entity, arrays={}) for entity in found] == [
        Entity("NA", "n", {"attr": "x"}, ("[1].jpg",)),
        Entity("1e5", "n m", {"attr": ""}, ("a.jpg", "b.jpg")),
        Entity("007", "null", {"attr": "NA"}, ("a.jpg", "b,c.jpg")),
    ]
    assert [entity.arrays["vector"].tolist() for entity in found] == [[5, 6], [3, 4], [1, 2]]
    (tmp_path / "test.csv").write_text(
        'id,mentions,sentence,answer,imgPath\n01,m,s,"[""007"", ""1e5""]",x.jpg\n02,m,s,nil,\n,m,s,NA,\n'
    )
    assert read_mentions(tmp_path / "test.csv") == [
        Mention("01", "m", "s", ("007", "1e5"), "x.jpg"), Mention("02", "m", "s"), Mention("2", "m", "s", ("NA",)),
    ]  # fmt: skip


def test_messages_are_short_whatever_the_values(tmp_path):
    huge = "x" * 2_000_000
    for row in (
        {**ENTITY, "qid": {huge: huge}}, {**ENTITY, "image_list": {"a": huge}}, {**ENTITY, "image_list": [f"/{huge}"]},
        {huge: 1, f"{huge}2": 2}, {**ENTITY, "id": [huge]}, [huge], huge, {**ENTITY, "entity_name": {"a": [huge] * 9}},
    ):  # fmt: skip
        with pytest.raises(DataError) as caught:
            read_entities(write(tmp_path / "x.json", [row]))
        assert 60 < len(str(caught.value).replace(str(tmp_path), "")) < 600


@needs_shared("data", "RichpediaMEL")
def test_richpedia_on_disk():
    module = RichpediaMEL(str(SHARED / "data" / "RichpediaMEL"))
    assert len(module.read_entities()) == 17_805
    assert [len(module.read_mentions(split)) for split in ("train", "val", "test")] == [12_460, 1_776, 3_560]


@needs_shared("data", "EmojiMEL")
def test_emoji_on_disk():
    module = MELDataModule(str(SHARED / "data" / "EmojiMEL"))
    assert len(module.read_entities()) == 1_906
    qids = {entity.id for entity in module.read_entities()}
    tests = module.read_mentions("test")
    assert len(tests) == 1_650 and all(gold in qids for mention in tests for gold in mention.golds)
