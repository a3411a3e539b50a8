"""The spaCy component links as the linker does, in every way that spaCy calls it, and can be saved and moved."""

from __future__ import annotations

import shutil

import pytest
from PIL import Image

from mimic_pl import Linker
from mimic_pl.errors import ConfigError, StoreError
from tests.serve.parts import KINDS, knowledge_base

spacy = pytest.importorskip("spacy")
pytestmark = pytest.mark.own_process

TEXTS = [
    "The jaguar lives here. The amazon is a river.",
    "Nothing to link",
    "A jaguar near the amazon, and a second jaguar.",
]
PATTERNS = [{"label": "ANIMAL", "pattern": "jaguar"}, {"label": "PLACE", "pattern": "amazon"}]


def pipeline(kb, **config):
    nlp = spacy.blank("en")
    nlp.add_pipe("sentencizer")
    nlp.add_pipe("entity_ruler").add_patterns(PATTERNS)
    nlp.add_pipe("mimic_linker", config={"kb": None if kb is None else str(kb), "device": "cpu", **config})
    return nlp


def found_in(doc):
    return [(ent.text, ent.label_, ent.kb_id_, ent._.candidates, ent._.nil_probability) for ent in doc.ents]


def test_links_are_those_of_the_linker(tmp_path):
    kb = knowledge_base(tmp_path)
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    nlp = pipeline(kb)
    doc = nlp.make_doc(TEXTS[0])
    doc._.image = str(tmp_path / "a.png")
    jaguar, amazon = nlp(doc).ents
    assert (jaguar.text, amazon.text, amazon.start) == ("jaguar", "amazon", 6)

    linker = Linker.from_pretrained(tmp_path / "model", "cpu").with_knowledge_base(kb)
    sentences = "The jaguar lives here.", "The amazon is a river."
    for ent, sentence in zip((jaguar, amazon), sentences, strict=True):
        expected = linker.link({"mention": ent.text, "sentence": sentence, "image": str(tmp_path / "a.png")})
        assert [(c["id"], c["score"], c["units"]) for c in ent._.candidates] == [
            (link.entity.id, link.score, link.units) for link in expected
        ]
        assert ent.kb_id_ == expected[0].entity.id and ent.label_ in ("ANIMAL", "PLACE")
        assert ent._.nil_probability is None and len(ent._.candidates) == 9


def test_an_image_of_a_mention_comes_before_that_of_the_document(tmp_path):
    kb = knowledge_base(tmp_path)
    images = [Image.new("RGB", (9, 9), color) for color in ((200, 10, 10), (0, 0, 200))]
    nlp = pipeline(kb, top_k=3)
    ruler = nlp.get_pipe("entity_ruler")

    def scores(of_document, of_mention):
        doc = ruler(nlp.get_pipe("sentencizer")(nlp.make_doc("The jaguar lives here.")))
        doc._.image = of_document
        doc.ents[0]._.image = of_mention
        return [candidate["score"] for candidate in nlp.get_pipe("mimic_linker")(doc).ents[0]._.candidates]

    assert scores(images[0], images[1]) == scores(None, images[1]) == scores(images[1], None)
    assert scores(images[0], None) != scores(images[1], None) != scores(None, None)
    assert len(scores(None, None)) == 3


def test_batches_and_processes_change_nothing(tmp_path):
    nlp = pipeline(knowledge_base(tmp_path))
    one_by_one = [found_in(nlp(text)) for text in TEXTS * 3]
    assert [len(found) for found in one_by_one[:3]] == [2, 0, 3]
    for size in (1, 2, 64):
        assert [found_in(doc) for doc in nlp.pipe(TEXTS * 3, batch_size=size)] == one_by_one
    # As another process sends documents.
    doc = spacy.tokens.Doc(nlp.vocab).from_bytes(nlp(TEXTS[2]).to_bytes())
    assert found_in(doc) == one_by_one[2]


def test_a_mention_that_cannot_be_linked_costs_its_document_alone(tmp_path):
    nlp = pipeline(knowledge_base(tmp_path, image_policy="error"))
    failed = []
    nlp.get_pipe("mimic_linker").set_error_handler(lambda name, component, docs, error: failed.append((docs, error)))
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    docs = [nlp.make_doc(text) for text in TEXTS]
    docs[0]._.image, docs[2]._.image = str(tmp_path / "missing.png"), str(tmp_path / "a.png")
    linked = list(nlp.pipe(docs))
    assert [doc.text for doc in linked] == TEXTS[1:] and all(ent.kb_id_ for ent in linked[1].ents)
    (((doc,), error),) = failed
    assert doc.text == TEXTS[0] and "missing.png" in str(error)


def test_types_and_filters_restrict_entities(tmp_path):
    kb = knowledge_base(tmp_path)
    doc = pipeline(kb, entity_types={"ANIMAL": KINDS[1]})(TEXTS[0])
    animal, place = doc.ents
    assert {c["id"] for c in animal._.candidates} == {"Q1", "Q4", "Q7"} and len(place._.candidates) == 9
    doc = pipeline(kb, filter=f"type = '{KINDS[0]}'")(TEXTS[0])
    assert all({c["id"] for c in ent._.candidates} == {"Q0", "Q3", "Q6"} for ent in doc.ents)
    doc = pipeline(kb, filter="type = 'none such'", nil="nobody")(TEXTS[0])
    assert [(ent.kb_id_, ent._.candidates) for ent in doc.ents] == [("nobody", [])] * 2


def test_saved_moved_and_loaded(tmp_path):
    kb = knowledge_base(tmp_path / "here")
    nlp = pipeline(kb)
    expected = [found_in(nlp(text)) for text in TEXTS]
    nlp.to_disk(tmp_path / "pipeline")
    nlp.to_disk(tmp_path / "pipeline")  # replaces the first
    shutil.move(tmp_path / "pipeline", tmp_path / "moved")
    shutil.move(tmp_path / "here", tmp_path / "elsewhere")
    again = spacy.load(tmp_path / "moved")
    assert [found_in(again(text)) for text in TEXTS] == expected
    with pytest.raises(StoreError, match="does not exist|contains no knowledge base"):
        pipeline(kb)(TEXTS[0])


def test_saved_without_the_knowledge_base(tmp_path):
    nlp = pipeline(knowledge_base(tmp_path))
    component = nlp.get_pipe("mimic_linker")
    component.to_disk(tmp_path / "component", exclude=["model", "knowledge_base"])
    assert [path.name for path in (tmp_path / "component").iterdir()] == ["settings.json"]
    other = pipeline(None)
    other.get_pipe("mimic_linker").from_disk(tmp_path / "component")
    assert [found_in(other(text)) for text in TEXTS] == [found_in(nlp(text)) for text in TEXTS]


def test_a_component_without_a_knowledge_base(tmp_path):
    with pytest.raises(ConfigError, match=r"'mimic_linker' has no knowledge base. Pass its folder"):
        pipeline(None)(TEXTS[0])
