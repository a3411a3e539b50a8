"""NIF is read back by rdflib with the same content; KILT predictions by our reader of KILT."""

from __future__ import annotations

import builtins
import json

import pytest
from hypothesis import given, settings

from mimic_pl import Entity, Mention
from mimic_pl.errors import ConfigError
from mimic_pl.formats import open_writer, read_mentions
from mimic_pl.formats.nif import entity_address
from mimic_pl.links import Link, Links
from tests.formats.some_links import several

rdflib = pytest.importorskip("rdflib")
NIF = rdflib.Namespace("http://persistence.uni-leipzig.org/nlp2rdf/ontologies/nif-core#")
ITSRDF = rdflib.Namespace("http://www.w3.org/2005/11/its/rdf#")


def phrases(path):
    """Sentence, begin, end, address and confidence of every phrase, as rdflib reads them."""
    graph = rdflib.Graph().parse(path, format="turtle")
    found = set()
    for phrase in graph.subjects(rdflib.RDF.type, NIF.Phrase):
        context = graph.value(phrase, NIF.referenceContext)
        assert (context, rdflib.RDF.type, NIF.Context) in graph
        sentence = str(graph.value(context, NIF.isString))
        begin, end = (graph.value(phrase, name).toPython() for name in (NIF.beginIndex, NIF.endIndex))
        assert graph.value(context, NIF.endIndex).toPython() == len(sentence)
        assert str(graph.value(phrase, NIF.anchorOf)) == sentence[begin:end]
        assert str(phrase).endswith(f"#offset_{begin}_{end}")
        addresses = frozenset(map(str, graph.objects(phrase, ITSRDF.taIdentRef)))
        confidences = frozenset(f"{value.toPython():.5e}" for value in graph.objects(phrase, ITSRDF.taConfidence))
        found.add((sentence, begin, end, addresses, confidences))
    return found


def write(path, values, **options):
    with open_writer(path, **options) as writer:
        for value in values:
            writer.write(value)
    return path


@settings(deadline=None, max_examples=50)
@given(several)
def test_any_links(tmp_path_factory, values):
    path = write(tmp_path_factory.getbasetemp() / "links.ttl", values)
    expected = {}
    for value in values:
        if value.mention is None:
            continue
        mention = value.mention
        begin, end = mention.span or (at := mention.sentence.find(mention.mention), at + len(mention.mention))
        addresses, confidences = expected.setdefault((mention.sentence, begin, end), (set(), set()))
        if not value.is_nil:
            addresses.add(entity_address(value[0].entity.id))
        confidence = value.nil_probability if value.is_nil else value[0].probability
        if confidence is not None:
            confidences.add(f"{float(f'{confidence:.6e}'):.5e}")  # as rdflib writes doubles
    assert phrases(path) == {(*place, frozenset(a), frozenset(c)) for place, (a, c) in expected.items()}


def test_two_mentions_of_a_sentence_share_its_context(tmp_path):
    sentence = "Jordan met Jordan."
    values = [
        Links(Mention("a", "Jordan", sentence, span=(0, 6)), (Link(Entity("Q41421", "MJ"), 2.0, 0.75),), 0.1),
        Links(Mention("b", "Jordan", sentence, span=(11, 17)), (Link(Entity("Q810", "Jordan"), 2.0, 0.1),), 0.5),
        Links(Mention("c", "Pippen", sentence), (Link(Entity("Q1", "P"), 2.0),)),  # not in the sentence
    ]
    path = write(tmp_path / "links.ttl", values)
    wikidata = "http://www.wikidata.org/entity/Q41421"
    assert phrases(path) == {
        (sentence, 0, 6, frozenset([wikidata]), frozenset(["7.50000e-01"])),
        (sentence, 11, 17, frozenset(), frozenset(["5.00000e-01"])),  # NIL
    }
    graph = rdflib.Graph().parse(path)
    assert len(set(graph.subjects(rdflib.RDF.type, NIF.Context))) == 1


@pytest.mark.parametrize(
    ("entity_id", "address"),
    [
        ("Q42", "http://www.wikidata.org/entity/Q42"),
        ("Q0", "urn:mimic-pl:entity:Q0"),
        ("https://dbpedia.org/resource/Jo_(x)", "https://dbpedia.org/resource/Jo_(x)"),
        ("http://x.org/a b", "urn:mimic-pl:entity:http%3A%2F%2Fx.org%2Fa%20b"),
        ("http://x.org/>\n<evil>", "urn:mimic-pl:entity:http%3A%2F%2Fx.org%2F%3E%0A%3Cevil%3E"),
        ("U1F600", "urn:mimic-pl:entity:U1F600"),
        ("é\ud800", "urn:mimic-pl:entity:%C3%A9%3F"),
    ],
)
def test_addresses_of_entities(entity_id, address):
    assert entity_address(entity_id) == address


def test_more_mentions_than_are_kept_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("mimic_pl.formats.nif._MENTIONS", 3)
    values = [Links(Mention(str(n), "Jo", f"Jo {n}"), (Link(Entity(f"Q{n + 1}", "Jo"), 1.0),)) for n in range(10)]
    assert len(phrases(write(tmp_path / "links.ttl", values))) == 10


def test_without_rdflib_nothing_is_linked_in_vain(tmp_path, monkeypatch):
    imported = builtins.__import__

    def without(name, *args, **options):
        if name.partition(".")[0] == "rdflib":
            raise ImportError("No module named 'rdflib'")
        return imported(name, *args, **options)

    monkeypatch.setattr("mimic_pl.formats.optional_package.import_module", without)
    with pytest.raises(ConfigError, match=r"Writing NIF needs the package rdflib.*pip install") as caught:
        open_writer(tmp_path / "links.ttl")
    assert caught.value.exit_code == 3 and list(tmp_path.iterdir()) == []


@settings(deadline=None, max_examples=50)
@given(several)
def test_kilt_predictions(tmp_path_factory, values):
    path = write(tmp_path_factory.getbasetemp() / "kilt.jsonl", values, format="kilt")
    for value, line in zip(values, map(json.loads, path.read_text().splitlines()), strict=True):
        assert set(line) == {"id", "input", "output"} and isinstance(line["input"], str)
        (output,) = line["output"]
        pages = [(link.entity.id, link.entity.name) for link in value]
        assert [(page["wikipedia_id"], page["title"]) for page in output["provenance"]] == pages
        assert output["answer"] == ("" if value.is_nil or not pages else pages[0][1])


def test_kilt_predictions_are_read_as_kilt(tmp_path):
    mention = Mention("x", "Jo", "So Jo, who was Jo, won.", span=(15, 17))
    links = Links(mention, (Link(Entity("290", "Jo A"), 2.0), Link(Entity("291", "Jo B"), 1.0)))
    path = write(tmp_path / "kilt.jsonl", [links], format="kilt")
    assert json.loads(path.read_text())["input"] == "So Jo, who was [START_ENT] Jo [END_ENT], won."
    (again,) = read_mentions(path)
    assert again == Mention("x", "Jo", mention.sentence, ("290", "291"), None, {"answer": "Jo A"}, {}, (15, 17))
