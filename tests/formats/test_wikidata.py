"""Wikidata's dumps: languages, ranks, images; compressed, damaged, and larger than the memory that reading takes."""

from __future__ import annotations

import bz2
import gzip
import itertools
import json
import subprocess
import sys
import time

import pytest

from mimic_pl import Entity
from mimic_pl.errors import DataError
from mimic_pl.formats import RecordError, read_entities
from tests.formats.wikidata import dump, image, instance_of, item, statement, value
from tests.launch import environment

ADAMS = item(
    "Q42",
    "Douglas Adams",
    labels={"en": value("en", "Douglas Adams"), "he": value("he", "דאגלס אדמס"), "de": value("de", "D. Adams")},
    descriptions={"en": value("en", "English writer"), "de": value("de", "britischer Schriftsteller")},
    aliases={"en": [value("en", "Douglas Noel Adams"), value("en", "DNA")], "he": [value("he", "אדמס")]},
    claims={"P31": [instance_of("Q5")], "P18": [image("Douglas adams portrait é.jpg")]},
)
URL = "https://commons.wikimedia.org/wiki/Special:FilePath/Douglas_adams_portrait_%C3%A9.jpg"
FIELDS = {
    "description": "English writer",
    "aliases": "Douglas Noel Adams | DNA",
    "type": "Q5",
    "types": "Q5",
    "image_url": URL,
}


def compressed(path, suffix, parts=1):
    """The file with a further suffix, in several streams one after the other as parallel compressors write it."""
    content = path.read_bytes()
    if not suffix:
        return path
    compress = {".gz": gzip.compress, ".bz2": bz2.compress}[suffix]
    at = [len(content) * part // parts for part in range(parts + 1)]
    target = path.with_name(path.name + suffix)
    target.write_bytes(b"".join(compress(content[left:right]) for left, right in itertools.pairwise(at)))
    return target


@pytest.mark.parametrize("suffix", ["", ".gz", ".bz2"])
@pytest.mark.parametrize("parts", [1, 3])
def test_a_dump(tmp_path, suffix, parts, caplog):
    property_ = item("P31", "instance of", type_="property")
    path = compressed(dump(tmp_path / "dump.json", ADAMS, property_, item("Q2", "Earth")), suffix, parts)
    empty = {**dict.fromkeys(FIELDS, "")}
    assert list(read_entities(path)) == [
        Entity("Q42", "Douglas Adams", FIELDS),
        Entity("Q2", "Earth", empty),
    ]
    messages = " ".join(record.msg for record in caplog.records)
    assert "entities of the type 'property' are left out (records: 1; the first is line 3)" in messages
    assert "images are on Wikimedia Commons and not fetched; their addresses are in 'image_url'" in messages


def test_lines_cut_out_of_a_dump_and_json_lines(tmp_path):
    (tmp_path / "cut.json").write_text(f"{json.dumps(ADAMS)},\n{json.dumps(item('Q2', 'Earth'))},\r\n\n")
    (tmp_path / "lines.jsonl").write_text(f"{json.dumps(ADAMS)}\n{json.dumps(item('Q2', 'Earth'))}")
    (tmp_path / "pretty.json").write_text(json.dumps([ADAMS, item("Q2", "Earth")], indent=2))
    for name in ("cut.json", "lines.jsonl", "pretty.json"):
        assert [entity.id for entity in read_entities(tmp_path / name, format="wikidata")] == ["Q42", "Q2"], name


@pytest.mark.parametrize("damaged", ['{"type": "item", "id": "Q3"', "\x00\x01", '{"id": "Q3", "labels": 3}', "[1]"])
def test_a_damaged_line_leaves_the_others_readable(tmp_path, damaged):
    path = dump(tmp_path / "dump.json", ADAMS, damaged, item("Q2", "Earth"))
    first, bad, last = read_entities(path)
    assert (first.id, last.id) == ("Q42", "Q2")
    assert isinstance(bad, RecordError) and f"{path}, line 3" in str(bad)


def test_a_dump_that_was_cut_off(tmp_path):
    whole = dump(tmp_path / "dump.json", ADAMS, item("Q2", "Earth"))
    whole.write_bytes(whole.read_bytes()[:-60])
    first, bad = read_entities(whole)
    assert first.id == "Q42" and "line 3: it is not valid JSON" in str(bad)


@pytest.mark.parametrize("suffix", [".gz", ".bz2"])
def test_a_compressed_dump_that_was_cut_off(tmp_path, suffix):
    whole = compressed(
        dump(tmp_path / "dump.json", ADAMS, *(item(f"Q{n}", f"n {n}") for n in range(12_000))), suffix, 9
    )
    whole.write_bytes(whole.read_bytes()[:-40])
    found = []
    with pytest.raises(DataError, match=f"dump.json{suffix}"):
        for entity in read_entities(whole):
            found.append(entity.id)
    assert found[:2] == ["Q42", "Q0"] and len(found) > 10_000


@pytest.mark.parametrize(
    ("languages", "name", "description", "aliases"),
    [
        (["he", "en"], "דאגלס אדמס", "English writer", "אדמס"),
        (["de", "en"], "D. Adams", "britischer Schriftsteller", "Douglas Noel Adams | DNA"),
        (["fr"], "Douglas Adams", "", ""),
        ([], "Douglas Adams", "", ""),
    ],
)
def test_languages(tmp_path, languages, name, description, aliases):
    (entity,) = read_entities(dump(tmp_path / "dump.json", ADAMS), languages=languages)
    assert (entity.name, entity.fields["description"], entity.fields["aliases"]) == (name, description, aliases)


def test_labels_for_every_language_and_none(tmp_path):
    mul = item("Q1", labels={"mul": value("mul", "A"), "xx": value("xx", "B")}, aliases={"mul": [value("mul", "C")]})
    found = list(read_entities(dump(tmp_path / "dump.json", mul, item("Q2")), languages=["de"]))
    assert [(entity.name, entity.fields["aliases"]) for entity in found] == [("A", "C"), ("Q2", "")]


def test_ranks_and_values_that_are_none(tmp_path):
    unknown = statement("P31", None, "wikibase-item", "preferred")
    old = instance_of("Q7")
    del old["mainsnak"]["datavalue"]["value"]["id"]
    rows = [
        item("Q1", "a", claims={"P31": [instance_of("Q3"), instance_of("Q5", "preferred"), instance_of("Q6")]}),
        item("Q2", "b", claims={"P31": [instance_of("Q3", "deprecated"), old, instance_of("Q8"), unknown]}),
        item("Q3", "c", claims={"P31": [unknown], "P18": [image("x.jpg", "deprecated")]}),
    ]
    found = [entity.fields for entity in read_entities(dump(tmp_path / "dump.json", *rows))]
    assert [(fields["type"], fields["types"]) for fields in found] == [("Q5", "Q5"), ("Q7", "Q7 Q8"), ("", "")]
    assert found[2]["image_url"] == ""


@pytest.mark.parametrize("name", ["Douglas adams portrait é.jpg", "Douglas_adams_portrait_é.jpg", None])
def test_downloaded_images(tmp_path, name, caplog):
    outside = item("Q1", "x", claims={"P18": [image("../secret.jpg")]})
    (tmp_path / "secret.jpg").touch()
    folder = tmp_path / "images"
    folder.mkdir()
    if name is not None:
        (folder / name).touch()
    first, second = read_entities(dump(tmp_path / "dump.json", ADAMS, outside), image_folder=folder)
    assert first.images == (() if name is None else (str(folder / name),)) and first.fields["image_url"] == URL
    assert second.images == ()
    (record,) = caplog.records
    assert f"images are not in {folder} (records: {1 if name else 2};" in record.msg


def big_dump(path, megabytes):
    """A dump of at least this size with items of about 4 kB, half of Wikidata's average."""
    aliases = {code: [value(code, f"alias {code}")] for code in ("de", "en", "fr", "he", "ja", "zh")}
    labels = {code: value(code, f"label {code}") for code in ("de", "en", "fr", "he", "ja", "zh")}
    claims = {"P31": [instance_of("Q5")], "P18": [image("a b.jpg")], "P1": [instance_of(f"Q{n + 1}") for n in range(8)]}
    parts = {"labels": labels, "aliases": aliases, "claims": claims}
    line = (
        json.dumps(item("Q{number}", **parts)).replace("{", "{{").replace("}", "}}").replace("{{number}}", "{number}")
    )
    count = 1 + megabytes * 1_000_000 // len(line)
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("[\n")
        for number in range(count):
            file.write(line.format(number=number) + (",\n" if number < count - 1 else "\n"))
        file.write("]\n")
    return count


@pytest.mark.slow
def test_memory_does_not_grow_with_a_dump_and_speed_is_that_of_json(tmp_path):
    script = (
        "import resource, sys\n"
        "from mimic_pl.formats import read_entities\n"
        "count = sum(1 for entity in read_entities(sys.argv[1]))\n"
        "print(count, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    peaks = []
    for megabytes in (2, 200):
        path = tmp_path / f"dump{megabytes}.json.gz"
        count = big_dump(path, megabytes)
        done = subprocess.run(
            [sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True, env=environment()
        )
        found, peak = map(int, done.stdout.split())
        assert found == count
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 20_000, f"{peaks} kB"  # 200 MB of JSON, a gigabyte as Python objects

    def seconds(work):
        start = time.process_time()  # not of other processes
        work()
        return time.process_time() - start

    def plain():
        with gzip.open(path, "rt") as file:
            for line in file:
                if line[0] == "{":
                    json.loads(line.rstrip(",\n"))

    reading, loading = seconds(lambda: sum(1 for _ in read_entities(path))), seconds(plain)
    print(f"{count / reading:,.0f} items a second, json.loads of each line {count / loading:,.0f}")
    assert reading < 2 * loading
