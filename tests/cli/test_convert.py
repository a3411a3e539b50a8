"""``mimic-pl convert`` writes what it can read, counts what it cannot, and says so by its exit code."""

from __future__ import annotations

import bz2
import csv
import json
import shutil

import pytest
import torch
from transformers import CLIPImageProcessorPil

from mimic_pl import MIMIC
from mimic_pl.encoders.configuration_files import save_tokenizer
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.formats import open_writer, read_entities, read_links, read_mentions
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity, Mention
from tests.formats.wikidata import dump, image, instance_of, item, value
from tests.shared import SHARED, needs_shared

PARITY = SHARED / "parity" / "official_tiny"


@pytest.fixture
def wikidata(tmp_path):
    adams = item(
        "Q42",
        "Douglas Adams",
        labels={"de": value("de", "D. Adams"), "en": value("en", "Douglas Adams")},
        descriptions={"en": value("en", "English writer")},
        aliases={"en": [value("en", "DNA")]},
        claims={"P31": [instance_of("Q5")], "P18": [image("a b.jpg")]},
    )
    path = dump(tmp_path / "dump.json", adams, "{damaged", item("Q7", "DNA"), "{damaged too")
    (tmp_path / "dump.json.bz2").write_bytes(bz2.compress(path.read_bytes()))
    return tmp_path / "dump.json.bz2"


def test_a_dump_becomes_a_knowledge_base(command, tmp_path, wikidata):
    code, out, err = command("convert", "kb", str(wikidata), str(tmp_path / "kb.csv"), "--languages", "de,en")
    assert code == 0, err
    assert f"Written: {tmp_path / 'kb.csv'}, 2 entities (4 read, 2 left out)." in out
    assert f"{wikidata}, line 3: it is not valid JSON" in out and "(The same in 1 more.)" in out
    first, second = read_entities(tmp_path / "kb.csv")
    assert (first.id, first.name, first.fields["type"], first.fields["aliases"]) == ("Q42", "D. Adams", "Q5", "DNA")
    assert first.fields["image_url"].endswith("/a_b.jpg") and second.name == "DNA"


def test_aliases(command, tmp_path, wikidata):
    code, out, _ = command("convert", "aliases", str(wikidata), str(tmp_path / "aliases.csv"))
    assert code == 0 and "3 pairs of a name and an entity" in out
    with (tmp_path / "aliases.csv").open(newline="") as file:
        rows = [(row["alias"], row["id"], float(row["prior"])) for row in csv.DictReader(file)]
    assert rows == [("Douglas Adams", "Q42", 1), ("DNA", "Q42", 0.5), ("DNA", "Q7", 0.5)]


def test_a_knowledge_base_for_spacy(command, tmp_path, wikidata):
    pytest.importorskip("spacy")
    from spacy.kb import InMemoryLookupKB
    from spacy.vocab import Vocab

    code, out, _ = command("convert", "kb", str(wikidata), str(tmp_path / "spacy"), "--to", "spacy")
    assert code == 0 and "2 entities (4 read, 2 left out)" in out
    kb = InMemoryLookupKB(Vocab(), 1)
    kb.from_disk(tmp_path / "spacy")
    assert {found.entity_ for found in kb.get_alias_candidates("DNA")} == {"Q42", "Q7"}


def test_other_data_becomes_a_data_set_for_training(command, trained, tmp_path):
    """Plain files of the tiny set are converted back; doctor finds in them what it finds in the original."""
    plain, root = tmp_path / "plain", tmp_path / "Again"
    (root / "kb_image").parent.mkdir()
    splits = {split: f"Tiny_{split}.json" for split in ("train", "dev", "test")}
    assert command("convert", "kb", str(trained.root / "kb_entity.json"), str(plain / "kb.parquet"))[0] == 0
    assert command("convert", "kb", str(plain / "kb.parquet"), str(root / "kb_entity.json"), "--to", "mimic")[0] == 0
    for split, name in splits.items():
        assert command("convert", "mentions", str(trained.root / name), str(plain / f"{split}.csv"))[0] == 0
        arguments = (str(plain / f"{split}.csv"), str(root / f"Again_{split}.json"), "--to", "mimic")
        assert command("convert", "mentions", *arguments)[0] == 0
    before, after = (
        command("doctor", "--data", "MELDataModule", "--data.root", str(folder), "--json", *options)
        for folder, options in (
            (trained.root, ["--data.name", "Tiny"]),
            (
                root,
                [
                    *("--data.name", "Again", "--data.entity_image_folder", str(trained.root / "kb_image")),
                    *("--data.mention_image_folder", str(trained.root / "mention_images")),
                ],
            ),
        )
    )
    assert before[0] == after[0] == 0, after
    counts = [
        {finding["subject"]: finding["value"] for finding in json.loads(out)["data_sets"][0]["findings"]}
        for _, out, _ in (before, after)
    ]
    for found in counts:
        del found["folder"]
    assert counts[0] == counts[1] and counts[0]["entity images"] == "16 of 16 open"


@pytest.mark.parametrize(("name", "to"), [("x.jsonl", None), ("x.csv", None), ("x.parquet", None), ("k.jsonl", "kilt")])
def test_links(command, tmp_path, name, to):
    links = Links(Mention("1", "Jo", "Jo won."), (Link(Entity("290", "A"), 1.5, 0.5, {"text": 1.0}),), 0.25)
    with open_writer(tmp_path / "links.jsonl") as writer:
        writer.write(links)
    options = [] if to is None else ["--to", to]
    code, out, _ = command("convert", "links", str(tmp_path / "links.jsonl"), str(tmp_path / name), *options)
    assert code == 0 and out.strip() == f"Written: {tmp_path / name}, 1 links."
    if to == "kilt":
        (mention,) = read_mentions(tmp_path / name)
        assert mention.golds == ("290",) and mention.span == (0, 2)
    elif name.endswith(".jsonl"):
        assert list(read_links(tmp_path / name)) == [links]


def test_links_as_nif(command, tmp_path):
    rdflib = pytest.importorskip("rdflib")
    with open_writer(tmp_path / "links.jsonl") as writer:
        writer.write(Links(Mention("1", "Jo", "Jo won."), (Link(Entity("Q290", "A"), 1.5),)))
    assert command("convert", "links", str(tmp_path / "links.jsonl"), str(tmp_path / "links.ttl"))[0] == 0
    graph = rdflib.Graph().parse(tmp_path / "links.ttl")
    assert rdflib.URIRef("http://www.wikidata.org/entity/Q290") in set(graph.objects())


def test_wrong_uses(command, tmp_path):
    (tmp_path / "kb.jsonl").write_text('{"uri": 1}\n')
    (tmp_path / "bad.jsonl").write_text('{"id": "Q1", "name": null}\n' * 3)
    for arguments, expected, says in (
        (("kb", "kb.jsonl", "out.csv"), 4, "has the keys 'uri', which no format has"),
        (("kb", "kb.jsonl", "out.csv", "--format", "xml"), 3, "no format 'xml'"),
        (("kb", "nowhere.jsonl", "out.csv"), 4, "does not exist"),
        (
            ("kb", "bad.jsonl", "out.csv"),
            4,
            "has no entities that can be used. bad.jsonl, line 1 (id 'Q1'): 'name' is not",
        ),
        (("kb", "bad.jsonl", "out.xml"), 3, "does not say in which format"),
        (("links", "bad.jsonl", "out.csv"), 4, "it has no list of 'candidates'"),
        (("weights", "x.ckpt", "out"), 3, "--pretrained"),
        (("nothing", "kb.jsonl", "out.csv"), 2, "nothing"),
        (("kb", "kb.jsonl"), 2, "target"),
    ):
        code, out, err = command("convert", *arguments, folder=tmp_path)
        assert code == expected and says in err, (arguments, out, err)
    assert not list(tmp_path.glob("out*")), "an output was written"


@needs_shared("parity", "official_tiny")
def test_published_weights(command, tmp_path):
    clip = shutil.copytree(PARITY / "clip", tmp_path / "clip")
    save_tokenizer(build_tokenizer([]), clip)  # the fixture has neither
    CLIPImageProcessorPil().save_pretrained(clip)
    weights, target = PARITY / "official_state_dict.safetensors", tmp_path / "converted"
    code, out, err = command("convert", "weights", str(weights), str(target), "--pretrained", str(clip))
    assert code == 0, err
    assert out.strip() == f"Written: {target}"
    ours, published = MIMIC.from_pretrained(target).state_dict(), MIMIC.from_published(weights, str(clip)).state_dict()
    assert ours.keys() == published.keys()
    assert all(torch.equal(ours[name], published[name]) for name in ours)


@needs_shared("data", "EmojiMEL")
@pytest.mark.slow
def test_a_real_knowledge_base_through_every_format(command, tmp_path):
    source = SHARED / "data" / "EmojiMEL" / "kb_entity.json"
    before = list(read_entities(source))
    for name in ("a.jsonl", "b.parquet", "c.csv", "d.json"):
        assert command("convert", "kb", str(source), str(tmp_path / name))[0] == 0
        source = tmp_path / name
    assert list(read_entities(source)) == before
