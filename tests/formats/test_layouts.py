"""Every layout is recognised and read; what cannot be read is an error of its own, and the others are read."""

from __future__ import annotations

import json
import logging

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from mimic_pl import Entity, Mention
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.formats import RecordError, read_entities, read_mentions
from tests.shared import SHARED, needs_shared


def lines(path, *rows):
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    )
    return path


ENTITIES = {
    "plain": (
        {"id": "Q1", "name": "Jo", "born": 1963, "alive": True, "aliases": ["J", "J", " MJ  23 "], "tags": ["a", "b"]},
        Entity("Q1", "Jo", {"born": "1963", "alive": "true", "aliases": "J | MJ 23", "tags": "a, b"}),
    ),
    "mimic": (
        {"id": 0, "qid": "Q1", "entity_name": "A%20b", "attr": "x.", "image_list": ["1.jpg", ""], "n": 3},
        Entity("Q1", "A b", {"attr": "x."}, ("1.jpg",)),
    ),
    "M3EL": (
        {"id": 0, "qid": "Q1", "entity_name": "Jo", "desc": "A player.", "image_list": "1.jpg"},
        Entity("Q1", "Jo", {"desc": "A player."}, ("1.jpg",)),
    ),
    "blink": (
        {"text": " A is a letter.", "idx": "https://en.wikipedia.org/wiki?curid=290", "title": "A", "entity": "A"},
        Entity("290", "A", {"text": " A is a letter."}),
    ),
    "zeshel": (
        {"document_id": "000523A4D586C293", "title": "Warner", "text": "Warner was a technician ..."},
        Entity("000523A4D586C293", "Warner", {"text": "Warner was a technician ..."}),
    ),
    "kilt": (
        {
            "wikipedia_id": "290",
            "wikipedia_title": "A",
            "text": ["A\n", "A is a letter.\n", "It is a vowel.\n", "Section::::History.\n", "Long ago ...\n"],
            "anchors": [{"text": "letter", "href": "Letter"}],
            "categories": "Letters,Vowels",
            "wikidata_info": {"wikidata_id": "Q9659", "description": "first letter", "aliases": ["a", "Æ"]},
        },
        Entity(
            "290",
            "A",
            {
                "text": "A is a letter. It is a vowel.",
                "categories": "Letters,Vowels",
                "description": "first letter",
                "wikidata_id": "Q9659",
                "aliases": "a | Æ",
            },
        ),
    ),
    "kilt in datasets": (
        {"wikipedia_id": "1", "wikipedia_title": "B", "text": {"paragraph": ["B\n", "B is.\n"]}, "wikidata_info": None},
        Entity("1", "B", {"text": "B is.", "categories": "", "description": "", "wikidata_id": "", "aliases": ""}),
    ),
    "glinker": (
        {"entity_id": "Q1", "label": "Kyiv", "aliases": ["Kiev"], "entity_type": "city", "popularity": 1000},
        Entity("Q1", "Kyiv", {"description": "", "aliases": "Kiev", "type": "city", "popularity": "1000"}),
    ),
}

MENTIONS = {
    "plain": (
        {"id": 7, "mention": "Jo", "sentence": "Jo won.", "golds": ["Q1", "Q2"], "topic": "sport", "gold": "no"},
        [Mention("7", "Jo", "Jo won.", ("Q1", "Q2"), None, {"topic": "sport"})],
    ),
    "a place": (
        {"sentence": "So Jo won.", "start": 3, "end": 5, "golds": "NIL"},
        [Mention("0", "Jo", "So Jo won.", span=(3, 5))],
    ),
    "several places": (
        {
            "id": "a",
            "sentence": "👩‍👧 and Jo",
            "spans": [[0, 3], {"start": 8, "end": 10}],
            "candidates": ["Q1", "a, b"],
        },
        [
            Mention("a", "👩‍👧", "👩‍👧 and Jo", fields={"candidates": '["Q1", "a, b"]'}, span=(0, 3)),
            Mention("a", "Jo", "👩‍👧 and Jo", fields={"candidates": '["Q1", "a, b"]'}, span=(8, 10)),
        ],
    ),
    "mimic": (
        {"id": "7-0", "mentions": "J%20o", "sentence": "J o.", "imgPath": "7.jpg", "answer": "Q1", "entities": "Jo"},
        [Mention("7-0", "J o", "J o.", ("Q1",), "7.jpg", {"entities": "Jo"})],
    ),
    "blink, words": (
        {
            **{
                "context_left": "he met",
                "mention": "jo",
                "context_right": "at noon",
                "label": "Jo is ...",
                "label_id": 4,
            },
            **{"label_title": "Jo", "world": "lego"},
        },
        [Mention("0", "jo", "he met jo at noon", ("4",), None, {"label_title": "Jo", "world": "lego"}, span=(7, 9))],
    ),
    "blink, text": (
        {"context_left": "he met ", "mention": "jo", "context_right": "'s dog", "label": "unknown", "label_id": -1},
        [Mention("0", "jo", "he met jo's dog", (), None, {}, span=(7, 9))],
    ),
    "zeshel's gold": (
        {"mention_id": "A6", "context_left": "", "mention": "jo", "context_right": ".", "label_document_id": "CD37"},
        [Mention("A6", "jo", "jo.", ("CD37",), None, {}, span=(0, 2))],
    ),
    "kilt": (
        {
            "id": "x_1",
            "input": "EU rejects [START_ENT] German [END_ENT] call",
            "output": [{"answer": "Germany", "provenance": [{"wikipedia_id": "11867", "title": "Germany"}]}],
            "meta": {"mention": "German"},
        },
        [Mention("x_1", "German", "EU rejects German call", ("11867",), None, {"answer": "Germany"}, span=(11, 17))],
    ),
    "kilt without answers": (
        {"id": 1, "input": " [START_ENT] Jo [END_ENT] won"},
        [Mention("1", "Jo", "Jo won", span=(0, 2))],
    ),
}


@pytest.mark.parametrize(("row", "expected"), ENTITIES.values(), ids=ENTITIES.keys())
def test_entities(tmp_path, row, expected):
    (found,) = read_entities(lines(tmp_path / "kb.jsonl", row))
    images = tuple(str(tmp_path / image) for image in expected.images)
    assert found == Entity(expected.id, expected.name, expected.fields, images)


@pytest.mark.parametrize(("row", "expected"), MENTIONS.values(), ids=MENTIONS.keys())
def test_mentions(tmp_path, row, expected):
    found = list(read_mentions(lines(tmp_path / "mentions.jsonl", row)))
    for mention in found:
        assert mention.span is None or mention.sentence[slice(*mention.span)] == mention.mention
        assert mention.image is None or mention.image == str(tmp_path / "7.jpg")
    assert [(m.id, m.mention, m.sentence, m.golds, m.fields, m.span) for m in found] == [
        (m.id, m.mention, m.sentence, m.golds, m.fields, m.span) for m in expected
    ]


def test_zeshel(tmp_path):
    (tmp_path / "documents").mkdir()
    (tmp_path / "mentions").mkdir()
    words = [f"w{number}" for number in range(400)]
    words[200:202] = ["J .", "é"]  # a token that is two words, as splitting at white space has it
    lines(
        tmp_path / "documents" / "lego.json",
        {"document_id": "D0", "title": "é", "text": "é first"},
        {"document_id": "D1", "title": "x", "text": " ".join(words)},
    )
    place = {"context_document_id": "D1", "corpus": "lego", "label_document_id": "L1", "category": "LOW_OVERLAP"}
    rows = [
        {"mention_id": "A", **place, "start_index": 200, "end_index": 202, "text": "J . é"},
        {"mention_id": "B", **place, "context_document_id": "D0", "start_index": 0, "end_index": 0, "text": "é"},
        {"mention_id": "C", **place, "start_index": 401, "end_index": 403},
        {"mention_id": "D", **place, "start_index": 1, "end_index": 1, "text": "w2"},
        {"mention_id": "E", **place, "context_document_id": "D9", "start_index": 1, "end_index": 1},
        {"mention_id": "F", **place, "corpus": "../lego", "start_index": 1, "end_index": 1},
    ]
    path = lines(tmp_path / "mentions" / "val.json", *rows)
    first, second, *bad = read_mentions(path)
    around = [*words[72:200], "J . é", *words[202:330]]
    fields = {"corpus": "lego", "category": "LOW_OVERLAP"}
    start = len(" ".join(words[72:200])) + 1
    assert first == Mention("A", "J . é", " ".join(around), ("L1",), None, fields, {}, (start, start + 5))
    assert (second.sentence, second.span) == ("é first", (0, 1))
    for error, says in zip(
        bad,
        [
            "line 3 (id 'C'): the place 401 to 403 is not in the document of 401 words",
            "'text' is 'w2', but its place has 'w1'",
            "the document 'D9' is not in",
            "'corpus' is '../lego', which is no name of a file",
        ],
        strict=True,
    ):
        assert isinstance(error, RecordError) and says in str(error)
    path = lines(tmp_path / "mentions" / "val.json", {**rows[0], "corpus": "nowhere"})
    with pytest.raises(DataError, match=r"nowhere.json does not exist"):
        list(read_mentions(path))


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet", ".jsonl.gz"])
def test_plain_records_of_every_file_format(tmp_path, suffix):
    import gzip

    rows = [{"id": "Q1", "name": 'A "b"', "note": "x,\ty", "images": ["a.jpg", "/b.jpg"]}, {"id": "Q2", "name": "=1"}]
    rows[1] |= {"note": "", "images": []}
    path = tmp_path / f"kb{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix == ".jsonl.gz":
        path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    else:
        import csv

        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, rows[0], delimiter="\t" if suffix == ".tsv" else ",")
            table.writeheader()
            table.writerows({**row, "images": json.dumps(row["images"])} for row in rows)
    assert list(read_entities(path)) == [
        Entity("Q1", 'A "b"', {"note": "x,\ty"}, (str(tmp_path / "a.jpg"), "/b.jpg")),
        Entity("Q2", "=1", {"note": ""}),
    ]


def test_places_in_csv_are_numbers(tmp_path):
    (tmp_path / "m.csv").write_text('sentence,start,end,spans\nSo Jo won.,3,5,\nJo,,,"[[0, 2]]"\n')
    assert [mention.span for mention in read_mentions(tmp_path / "m.csv")] == [(3, 5), (0, 2)]


def test_images(tmp_path, caplog):
    rows = [
        {"id": "1", "name": "a", "image": "https://x.org/a.jpg"},
        {"id": "2", "name": "b", "images": ["b/../c.jpg", "http://x.org/b.jpg", "http://x.org/c.jpg"], "image": None},
    ]
    first, second = read_entities(lines(tmp_path / "kb.jsonl", *rows), image_folder=tmp_path / "pictures")
    assert first.images == () and first.fields == {"image_url": "https://x.org/a.jpg"}
    assert second.images == (str(tmp_path / "pictures" / "b/../c.jpg"),)
    assert second.fields == {"image_url": "http://x.org/b.jpg http://x.org/c.jpg"}
    (record,) = caplog.records
    assert (
        "URLs, which are not fetched but kept as the field 'image_url' (records: 2; the first is line 1)" in record.msg
    )


def test_the_folders_of_images_of_mimics_layout(tmp_path):
    (tmp_path / "kb_images").mkdir()
    (tmp_path / "mention_images").mkdir()
    kb = lines(tmp_path / "kb.jsonl", {"qid": "Q1", "entity_name": "n", "image_list": ["1.jpg"]})
    mentions = lines(tmp_path / "m.jsonl", {"mentions": "n", "sentence": "n", "imgPath": "2.jpg"})
    assert next(read_entities(kb)).images == (str(tmp_path / "kb_images" / "1.jpg"),)
    assert next(read_mentions(mentions)).image == str(tmp_path / "mention_images" / "2.jpg")
    assert next(read_entities(kb, image_folder=tmp_path)).images == (str(tmp_path / "1.jpg"),)
    # Published mention images have the suffix .jpg, whatever their names in the data are.
    (tmp_path / "mention_images" / "3.jpg").touch()
    mentions = lines(tmp_path / "m.jsonl", {"mentions": "n", "sentence": "n", "imgPath": "3.svg.png"})
    assert next(read_mentions(mentions)).image == str(tmp_path / "mention_images" / "3.jpg")


def test_contents_of_images_in_parquet(tmp_path):
    content = b"\x89PNG"
    rows = [
        {"id": "1", "name": "a", "image": {"bytes": content, "path": None}},
        {"id": "2", "name": "b", "image": {"bytes": None, "path": "b.jpg"}},
        {"id": "3", "name": "c", "image": None},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "kb.parquet")
    found = [entity.images for entity in read_entities(tmp_path / "kb.parquet")]
    assert found == [(content,), (str(tmp_path / "b.jpg"),), ()]


def test_arrays(tmp_path):
    rows = [{"id": "1", "name": "a", "arrays": {"v": [1, 2]}, "w": [[0.5]]}]
    (entity,) = read_entities(lines(tmp_path / "kb.jsonl", *rows), arrays=["w"])
    assert entity.arrays["v"].dtype == np.int64 and entity.arrays["v"].tolist() == [1, 2]
    assert entity.arrays["w"].dtype == np.float32 and entity.arrays["w"].tolist() == [[0.5]] and entity.fields == {}


def test_what_is_no_text_is_left_out_and_said_so(tmp_path, caplog):
    rows = [{"id": str(number), "name": "a", "links": {"en": "A"}} for number in range(3)]
    assert {tuple(entity.fields) for entity in read_entities(lines(tmp_path / "kb.jsonl", *rows))} == {()}
    (record,) = caplog.records
    assert "'links' is left out, since it is not text (records: 3; the first is line 1)" in record.msg


BAD_ENTITIES = {
    "no name": ({"id": "Q2"}, "line 2 (id 'Q2'): there is no 'name'. The record has: 'id'"),
    "another key": ({"id": "Q2", "names": "x"}, "If that is 'names', rename it"),
    "a float": ({"id": 2.0, "name": "x"}, "'id' is a number, 2.0; expected text or an integer"),
    "an empty id": ({"id": " ", "name": "x"}, "'id' is empty. Give each entity an id of its own"),
    "a surrogate": ('{"id": "Q2", "name": "\\ud800"}', "'name' has an unpaired surrogate"),
    "no object": ("[1]", "[1] is not an object with fields"),
    "damaged": ('{"id": ', "the record is incomplete at the end of its line"),
    "an image": ({"id": "Q2", "name": "x", "image": 7}, "the image 7 is not a file name"),
    "an array": ({"id": "Q2", "name": "x", "arrays": {"v": ["a"]}}, "'v' is ['a']; expected a list of finite numbers"),
}


@pytest.mark.parametrize(("row", "says"), BAD_ENTITIES.values(), ids=BAD_ENTITIES.keys())
def test_a_bad_entity_leaves_the_others_readable(tmp_path, row, says):
    good = [{"id": f"Q{number}", "name": "n"} for number in (1, 3)]
    first, bad, last = read_entities(lines(tmp_path / "kb.jsonl", good[0], row, good[1]))
    assert (first.id, last.id) == ("Q1", "Q3")
    assert isinstance(bad, RecordError) and bad.number == 2
    assert f"{tmp_path / 'kb.jsonl'}, line 2" in str(bad) and says in str(bad)


BAD_MENTIONS = {
    "no mention": ({"sentence": "x"}, "there is no 'mention'"),
    "an empty one": ({"mention": "", "sentence": "x"}, "'mention' is empty, and there is no place"),
    "outside": ({"sentence": "abc", "start": 2, "end": 4}, "The mention is from 2 to 4 of a sentence of 3 characters"),
    "empty": ({"sentence": "abc", "start": 2, "end": 2}, "from 2 to 2 of a sentence"),
    "negative": ({"sentence": "abc", "spans": [[-1, 2]]}, "from -1 to 2 of a sentence"),
    "no numbers": ({"sentence": "abc", "start": "a", "end": 2}, "from 'a' to 2 of a sentence"),
    "half": ({"sentence": "abc", "start": 1}, "from 1 to None of a sentence"),
    "no spans": ({"sentence": "abc", "spans": []}, "expected a list of [start, end]"),
    "another word": (
        {"mention": "b", "sentence": "abc", "start": 0, "end": 1},
        "The mention is 'b', but the sentence has 'a' from 0 to 1",
    ),
    "golds": ({"mention": "b", "golds": [{"id": 1}]}, "'golds' is [{'id': 1}]; expected an id"),
    "images": ({"mention": "b", "images": ["a", "b"]}, "there are 2 images; a mention has one"),
}


@pytest.mark.parametrize(("row", "says"), BAD_MENTIONS.values(), ids=BAD_MENTIONS.keys())
def test_a_bad_mention_leaves_the_others_readable(tmp_path, row, says):
    good = {"mention": "a", "sentence": "a"}
    first, bad, last = read_mentions(lines(tmp_path / "m.jsonl", good, row, good))
    assert isinstance(first, Mention) and isinstance(last, Mention)
    assert isinstance(bad, RecordError) and says in str(bad) and "m.jsonl, line 2" in str(bad)


@pytest.mark.parametrize(
    "row", [{"input": "no markers", "output": []}, {"input": "[START_ENT] [END_ENT]", "output": 3}]
)
def test_bad_kilt(tmp_path, row):
    (bad,) = read_mentions(lines(tmp_path / "m.jsonl", {"id": "k", **row}))
    assert "line 1 (id 'k'): 'input' has no mention between [START_ENT] and [END_ENT]" in str(bad)


def test_an_unknown_layout_lists_what_is_there_and_what_is_known(tmp_path):
    path = lines(tmp_path / "kb.jsonl", {"uri": "x", "title": "y"})
    with pytest.raises(DataError) as caught:
        list(read_entities(path))
    assert "has the keys 'uri', 'title', which no format has" in str(caught.value)
    for known in ("plain: id, name;", "mimic: qid, entity_name;", "wikidata:", "glinker: entity_id, label"):
        assert known in str(caught.value)
    with pytest.raises(ConfigError, match="no format 'xml' here. Choose one of: plain, mimic, blink"):
        list(read_entities(path, format="xml"))


def test_an_ambiguous_layout_has_to_be_named(tmp_path):
    path = lines(tmp_path / "kb.jsonl", {"id": "1", "name": "a", "qid": "Q1", "entity_name": "b"})
    with pytest.raises(DataError, match="fit several formats. Name the one that is meant: plain or mimic"):
        list(read_entities(path))
    assert next(read_entities(path, format="plain")).id == "1"
    assert next(read_entities(path, format="mimic")).id == "Q1"


def test_the_keys_of_an_object_are_ids(tmp_path):
    (tmp_path / "kb.json").write_text(json.dumps({"Q1": {"name": "a"}, "Q2": {"name": "b"}}))
    assert [entity.id for entity in read_entities(tmp_path / "kb.json")] == ["Q1", "Q2"]
    (tmp_path / "glinker.json").write_text(json.dumps({"Q1": {"label": "a"}}))
    assert [entity.id for entity in read_entities(tmp_path / "glinker.json", format="glinker")] == ["Q1"]


def test_a_damaged_first_record_does_not_hide_the_layout(tmp_path):
    bad, good = read_entities(lines(tmp_path / "kb.jsonl", "{", {"entity_id": "Q1", "label": "a"}))
    assert isinstance(bad, RecordError) and good.id == "Q1"


@needs_shared("data", "EmojiMEL")
@pytest.mark.parametrize("name", ["EmojiMEL", "RichpediaMEL"])
def test_the_records_are_those_of_the_data_modules(name, caplog):
    from mimic_pl.data.reader import read_entities as entities_of_data
    from mimic_pl.data.reader import read_mentions as mentions_of_data

    folder = SHARED / "data" / name
    caplog.set_level(logging.ERROR)
    for ours, theirs, images in (
        (read_entities(folder / "kb_entity.json"), entities_of_data(folder / "kb_entity.json"), "kb_image"),
        (
            read_mentions(folder / f"{name}_test.json"),
            mentions_of_data(folder / f"{name}_test.json"),
            "mention_images",
        ),
    ):
        found = sorted(ours, key=lambda record: record.id)
        assert len(found) == len(theirs) > 1000
        for mine, other in zip(found, sorted(theirs, key=lambda record: record.id), strict=True):
            assert (mine.id, mine.fields) == (other.id, other.fields)
            names = [str(folder / images / file) for file in other.image_files]
            assert list(mine.image_files) == names


class TestDataSets:
    """Through `datasets`, from a local folder: no connection is used."""

    @pytest.fixture(autouse=True)
    def cache(self, tmp_path, monkeypatch):
        datasets = pytest.importorskip("datasets")
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")

    def test_a_folder_of_json_lines(self, tmp_path):
        folder = tmp_path / "set"
        folder.mkdir()
        lines(folder / "train.jsonl", {"id": "Q1", "name": "a"})
        lines(folder / "test.jsonl", {"id": "Q2", "name": "b"})
        assert [entity.id for entity in read_entities(f"datasets:{folder}:test")] == ["Q2"]
        with pytest.raises(DataError, match="has several splits: 'train', 'test'. Name one: datasets:.*:train"):
            list(read_entities(f"datasets:{folder}"))
        with pytest.raises(DataError, match="cannot be loaded: .*Check its name"):
            list(read_entities(f"datasets:{folder}:dev"))

    def test_images(self, tmp_path):
        folder = tmp_path / "set"
        folder.mkdir()
        Image.new("RGB", (4, 3), "red").save(folder / "a.png")
        lines(folder / "metadata.jsonl", {"file_name": "a.png", "id": "Q1", "name": "a"})
        (entity,) = read_entities(f"datasets:{folder}")
        (image,) = entity.images
        assert image.size == (4, 3) and image.convert("RGB").getpixel((0, 0)) == (255, 0, 0)

    def test_no_such_set(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(DataError, match="datasets:owner/name/config:test cannot be loaded"):
            list(read_mentions("datasets:owner/name/config:test"))
