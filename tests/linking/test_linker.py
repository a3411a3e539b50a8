"""What users give to a linker: records of all kinds, good and bad; and what they get."""

import io
import json
import re
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

import mimic_pl
from mimic_pl import MIMIC, KnowledgeBase, Linker, Links, Mention
from mimic_pl.calibration import Calibration
from mimic_pl.cli.link import _job
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, DataError, StoreError
from mimic_pl.linking import knowledge_base_changes
from mimic_pl.linking.knowledge_base_changes import DRIFT, KnowledgeBaseWriter
from mimic_pl.processor import BM25Lexicon, Processor
from mimic_pl.retrieval import CrossEncoder
from mimic_pl.units import GlobalCosine, Lexical
from tests import tiny
from tests.ranking.test_lance_index import flip_bit

pytestmark = pytest.mark.own_process


def model_of(seed=0, **settings):
    torch.manual_seed(seed)
    return MIMIC(CLIPEncoder(**tiny.ENCODER), Processor(entity_template="{name} [SEP] {attr}", **settings)).eval()


ENTITIES = [
    {"id": f"Q{n}", "name": tiny.NAMES[n % 4], "attr": f"a {list(tiny.KINDS)[n % 3]}", "type": list(tiny.KINDS)[n % 3]}
    for n in range(9)
]


def opened(tmp_path):
    """Not a fixture, which would use Lance in the process that others are forked from."""
    linker = Linker(model_of())
    linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    return linker.with_knowledge_base(tmp_path / "kb")


def scores(links):
    return [(link.entity.id, link.score) for link in links]


def test_every_form_of_an_image_is_the_same_image(tmp_path):
    linker = opened(tmp_path)
    image = Image.new("RGB", (30, 20), (200, 10, 10))
    image.save(tmp_path / "a.png")
    content = io.BytesIO()
    image.save(content, "PNG")
    forms = [tmp_path / "a.png", str(tmp_path / "a.png"), content.getvalue(), image, np.array(image)]
    found = linker.link([{"mention": "jaguar", "sentence": "the jaguar", "image": form} for form in forms])
    assert all(scores(links) == scores(found[0]) for links in found)
    relative = linker.link({"mention": "jaguar", "sentence": "the jaguar", "image": "a.png"}, image_folder=tmp_path)
    assert scores(relative) == scores(found[0])
    without = linker.link({"mention": "jaguar", "sentence": "the jaguar"})
    assert scores(without) != scores(found[0])


def test_a_word_its_offsets_and_spans_are_the_same_mention(tmp_path):
    linker = opened(tmp_path)
    sentence = "the jaguar and the amazon"
    by_word = linker.link({"mention": "amazon", "sentence": sentence})
    by_place = linker.link({"sentence": sentence, "start": 19, "end": 25})
    both = linker.link({"sentence": sentence, "spans": [[4, 10], (19, 25)]})
    assert isinstance(by_word, Links) and isinstance(both, list)
    assert scores(by_place) == scores(by_word) == scores(both[1])
    assert by_place.mention.span == (19, 25) and [links.mention.mention for links in both] == ["jaguar", "amazon"]
    several = linker.link([{"mention": "river"}, {"sentence": sentence, "spans": [[4, 10], [19, 25]]}])
    assert [links.number for links in several] == [0, 1, 1]


BAD = [
    ({"sentence": "no mention"}, "no 'mention'"),
    ({"sentence": "short", "start": 2, "end": 9}, "from 2 to 9 of a sentence of 5 characters"),
    ({"mention": "x", "sentence": "a jaguar", "start": 2, "end": 8}, "has 'jaguar' from 2 to 8"),
    ({"mention": "jaguar", "candidates": ["Q1", "Q77"]}, "'Q77'"),
    ({"mention": "jaguar", "candidates": "[1.5]"}, "list of ids"),
    ({"mention": "jaguar", "filter": "size > 3"}, "size > 3"),
    ({"mention": "jaguar", "image": 3}, "type int"),
    ({"mention": "jaguar", "spans": [[0, 1]]}, "both 'spans' and 'mention'"),
    ({"mention": "jaguar", "sentence": "half of one: \ud83d"}, "half of a character"),
    ("jaguar", "not a dictionary"),
    (7, "not a dictionary"),
]
"""Records that cannot be linked, and what their errors say."""


def test_a_bad_record_costs_the_others_nothing(tmp_path):
    linker = opened(tmp_path)
    good = [{"mention": "jaguar", "sentence": "the jaguar runs"}, Mention("", "amazon", "the amazon")]
    alone = [scores(linker.link(one)) for one in good]
    for record, message in BAD:
        found = linker.link([good[0], record, good[1]], batch_size=2)
        assert [links.number for links in found] == [0, 1, 2]
        assert [scores(found[0]), scores(found[2])] == alone
        assert isinstance(found[1].error, DataError) and message in str(found[1].error)
        assert not found[1].is_nil and found[1].best is None
        if isinstance(record, dict):
            with pytest.raises(DataError, match=re.escape(message)):
                linker.link(record)
    everything = linker.link([good[0], *(record for record, _ in BAD), good[1]], batch_size=5)
    assert [links.error is None for links in everything] == [True, *[False] * len(BAD), True]
    assert [scores(everything[0]), scores(everything[-1])] == alone


def test_the_image_policy_decides_about_missing_images(tmp_path, caplog):
    linker = opened(tmp_path)
    records = [{"mention": "jaguar", "image": f"missing{n}.jpg"} if n % 2 else {"mention": "jaguar"} for n in range(8)]
    stream = linker.link_stream(records, batch_size=3)
    found = list(stream)
    assert all(links.error is None and scores(links) == scores(found[0]) for links in found)
    assert stream.counts.images == {"missing": 4} and stream.counts.total == 8
    assert "Images of mentions that could not be used: 4 missing, for example missing1.jpg" in caplog.text
    caplog.clear()
    again = linker.with_knowledge_base(tmp_path / "kb")
    for record in records:
        again.link(record)
    assert "could not be used" not in caplog.text and linker.unusable_images == {"missing": 8}
    (tmp_path / "text.jpg").write_text("no image")
    again.link({"mention": "jaguar", "image": str(tmp_path / "text.jpg")})
    assert "could not be used: 1 unreadable" in caplog.text
    strict = Linker(model_of(image_policy="error"))
    strict = strict.with_knowledge_base(strict.index(ENTITIES, tmp_path / "strict", show_progress_bar=False))
    found = strict.link(records)
    assert [links.error is None for links in found] == [True, False] * 4
    assert "missing1.jpg is missing" in str(found[1].error)


def test_a_linker_of_another_model_is_refused_and_told_why(tmp_path):
    opened(tmp_path)
    with pytest.raises(StoreError, match="another model"):
        Linker(model_of(seed=1)).with_knowledge_base(tmp_path / "kb")
    other = Linker(model_of(reduced_decoding=True))
    with pytest.raises(StoreError, match="another reduced decoding .'False', now 'True'"):
        other.with_knowledge_base(tmp_path / "kb")
    with pytest.raises(StoreError, match="reduced decoding"):
        other.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    template = Linker(model_of(mention_template="{sentence}"))
    with pytest.raises(StoreError, match="another mention template"):
        template.with_knowledge_base(tmp_path / "kb")
    with pytest.raises(ConfigError, match="no knowledge base"):
        template.link({"mention": "jaguar"})


def test_wrong_arguments(tmp_path):
    linker = opened(tmp_path)
    with pytest.raises(ConfigError, match="top_k is 0"):
        linker.link({"mention": "jaguar"}, top_k=0)
    with pytest.raises(ConfigError, match="batch_size is -1"):
        linker.link([], batch_size=-1)
    with pytest.raises(DataError, match="colour"):
        linker.link([], filter="colour = 'red'")
    assert linker.link([]) == []


def test_changes_of_unknown_or_known_entities_are_refused(tmp_path):
    linker = opened(tmp_path)
    with pytest.raises(DataError, match="already has 'Q1'"):
        linker.add_entities([ENTITIES[1]])
    with pytest.raises(DataError, match="has no 'Q99'"):
        linker.update_entities([{**ENTITIES[0], "id": "Q99"}])
    with pytest.raises(DataError, match="has no 'Q99'"):
        linker.delete_entities(["Q99"])
    assert len(linker.knowledge_base) == 9


def lexical_linker():
    torch.manual_seed(0)
    units = {"names": Lexical, "cosine": lambda dims: GlobalCosine(dims)}
    lexicon = BM25Lexicon(b=0.0)  # does not depend on the mean length
    processor = Processor(features={"lexical": lexicon}, entity_template="{name} [SEP] {attr}")
    return Linker(MIMIC(CLIPEncoder(**tiny.ENCODER), processor, units=units).eval())


def frequencies(lexicon):
    return {name: value.tolist() for name, value in lexicon.statistics().items() if name != "mean_length"}


def test_statistics_follow_the_knowledge_base(tmp_path):
    """BM25 after changes is that of a lexicon fitted to the entities that remain, with the first mean length."""
    asked = {"mention": "jaguar", "sentence": "the jaguar animal company"}
    changed = lexical_linker()
    changed = changed.with_knowledge_base(changed.index(ENTITIES, tmp_path / "a", show_progress_bar=False))
    before = scores(changed.link(asked, top_k=None))
    changed.add_entities([{"id": f"R{n}", "name": "jaguar", "attr": "a company"} for n in range(5)])
    changed.delete_entities(["Q0", "Q4"])
    changed.update_entities([{"id": "Q1", "name": "amazon", "attr": "an animal"}])
    after = scores(changed.link(asked, top_k=None))
    remaining = changed.knowledge_base.entities(changed.knowledge_base.index.order)
    new = lexical_linker()
    new.index(remaining, tmp_path / "b", show_progress_bar=False)
    fitted = lexical_linker().model.processor.fit(remaining).features["lexical"]
    assert frequencies(changed.model.processor.features["lexical"]) == frequencies(fitted)
    expected = dict(scores(new.with_knowledge_base(tmp_path / "b").link(asked, top_k=None)))
    assert dict(after) == expected and dict(before) != expected


def test_statistics_follow_an_indexing_into_a_knowledge_base_that_was_interrupted(tmp_path, monkeypatch):
    monkeypatch.setattr(knowledge_base_changes, "AT_ONCE", 2)
    linker = lexical_linker()
    linker.index(ENTITIES[:3], tmp_path / "kb", show_progress_bar=False)
    encoded = KnowledgeBaseWriter._encoded

    def interrupted(self, entities, processor, bar):
        if ENTITIES[7]["id"] in [entity.id for entity in entities]:
            raise KeyboardInterrupt
        return encoded(self, entities, processor, bar)

    monkeypatch.setattr(KnowledgeBaseWriter, "_encoded", interrupted)
    with pytest.raises(KeyboardInterrupt):
        linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    monkeypatch.setattr(KnowledgeBaseWriter, "_encoded", encoded)
    for known in (6, len(ENTITIES)):
        linker = linker.with_knowledge_base(tmp_path / "kb")
        assert len(linker.knowledge_base) == known
        fitted = linker.model.processor.fit(linker.knowledge_base.entities(linker.knowledge_base.index.order))
        assert frequencies(linker.model.processor.features["lexical"]) == frequencies(fitted.features["lexical"])
        linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)


def test_calibration_gives_probabilities_of_candidates_and_nil(tmp_path):
    linker = opened(tmp_path)
    calibrated = Linker(linker.model, linker.knowledge_base, Calibration(2.0, 0.5, top_k=4))
    links = calibrated.link({"mention": "jaguar", "sentence": "the jaguar"}, top_k=2)
    assert len(links) == 2 and 0 < links.nil_probability < 1
    four = np.array([score for _, score in scores(linker.link(links.mention, top_k=4))])
    weights = np.exp(four / 2.0)
    assert [link.probability for link in links] == pytest.approx(
        (weights / (weights.sum() + np.exp(0.25)))[:2].tolist()
    )
    with pytest.raises(ConfigError, match="other weights"):
        Linker(linker.model, calibration=Calibration(1.0, 0.0, weights="0" * 64))


def test_a_reranker_sees_the_candidates_and_orders_them(tmp_path):
    linker = opened(tmp_path)
    seen = []

    def backwards(mention, candidates):
        seen.append((mention.mention, [link.entity.id for link in candidates]))
        return list(range(len(candidates)))

    asked = {"mention": "jaguar", "sentence": "the jaguar"}
    first = linker.link(asked, top_k=3)
    second = Linker(linker.model, linker.knowledge_base, reranker=backwards).link(asked, top_k=3)
    assert [link.entity.id for link in second] == [link.entity.id for link in first][::-1]
    assert seen == [("jaguar", [link.entity.id for link in first])]
    assert [link.units["first_stage"] for link in second] == [link.score for link in first][::-1]


def test_a_reranker_reads_as_many_candidates_as_it_asks_for(tmp_path):
    class LastOfSix:
        top_k = 6

        def __call__(self, mention, candidates):
            return list(range(len(candidates)))

    linker = opened(tmp_path)
    asked = {"mention": "jaguar", "sentence": "the jaguar"}
    (only,) = Linker(linker.model, linker.knowledge_base, reranker=LastOfSix()).link(asked, top_k=1)
    assert only.entity.id == linker.link(asked, top_k=6)[5].entity.id


def test_probabilities_of_the_first_stage_are_not_given_to_reranked_scores(tmp_path):
    linker = opened(tmp_path)
    linker.model.save_pretrained(tmp_path / "model")
    Calibration(1.0, 0.0, weights=linker.weights).save(tmp_path / "model")
    asked = {"mention": "jaguar", "sentence": "the jaguar"}

    def same(mention, candidates):
        return [link.score for link in candidates]

    for reranker in (None, same):
        loaded = Linker.from_pretrained(tmp_path / "model", "cpu", reranker=reranker).with_knowledge_base(
            tmp_path / "kb"
        )
        links = loaded.link(asked)
        assert (links.nil_probability is None) == (links[0].probability is None) == (reranker is not None)


def test_an_interrupted_command_does_not_go_on_with_a_retrained_reranker(tmp_path):
    linker = opened(tmp_path)
    config = Namespace(top_k=3, filter=None, format=None, image_folder=None, certify=False)

    def job(reranker):
        return _job(config, tmp_path / "m.jsonl", Linker(linker.model, linker.knowledge_base, reranker=reranker))

    text_model = {"model_type": "bert", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    reranker = CrossEncoder(config=text_model, vocabulary=tiny.WORDS, mention_tokens=10, max_tokens=24)
    reranker.save_pretrained(tmp_path / "reranker")
    first = job(CrossEncoder.from_pretrained(tmp_path / "reranker"))
    assert job(CrossEncoder.from_pretrained(tmp_path / "reranker")) == first != job(None)
    with torch.no_grad():
        reranker.model.classifier.bias += 1
    reranker.save_pretrained(tmp_path / "reranker")
    assert job(CrossEncoder.from_pretrained(tmp_path / "reranker")) != first


def test_explain(tmp_path):
    linker = opened(tmp_path)
    asked = {"mention": "jaguar", "sentence": "the jaguar"}
    links = linker.link(asked, top_k=9)
    explained = linker.explain(asked, links[2].entity.id)
    assert explained.rank == 3 and explained.score == pytest.approx(links[2].score, abs=1e-6)
    with pytest.raises(DataError):
        linker.explain(asked, "Q99")


def test_explain_ranks_among_the_entities_that_link_ranks(tmp_path):
    linker = opened(tmp_path)
    filter, asked = "name != 'jaguar'", {"mention": "jaguar", "sentence": "the jaguar", "entity_type": "river"}
    links = linker.link(asked, top_k=None, filter=filter)
    assert 1 < len(links) < len(linker.link(asked, top_k=None)) < 9
    for rank, link in enumerate(links, 1):
        explained = linker.explain(asked, link.entity.id, filter=filter)
        assert (explained.rank, explained.ranking.num_entities) == (rank, len(links))
        assert explained.score == pytest.approx(link.score, abs=1e-6)
        others = [other.entity.id for other in links if other is not link]
        assert list(explained.ranking.competitors) == others[:5]
    excluded = next(entity["id"] for entity in ENTITIES if entity["id"] not in {link.entity.id for link in links})
    with pytest.raises(DataError, match=f"'{excluded}' has no rank"):
        linker.explain(asked, excluded, filter=filter)


def test_links_of_a_file(tmp_path):
    linker = opened(tmp_path)
    Image.new("RGB", (30, 20), (200, 10, 10)).save(tmp_path / "a.png")
    lines = [
        {"mention": "jaguar", "sentence": "the jaguar", "image": "a.png", "entity_type": "river"},
        {"sentence": "without a mention"},
        {"sentence": "the amazon", "start": 4, "end": 10, "candidates": ["Q1", "Q2"]},
    ]
    (tmp_path / "mentions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = linker.link(tmp_path / "mentions.jsonl")
    assert {link.entity.fields["type"] for link in found[0]} == {"river"}
    assert "line 2" in str(found[1].error)
    assert {link.entity.id for link in found[2]} == {"Q1", "Q2"}
    direct = linker.link({**lines[0], "image": str(tmp_path / "a.png")})
    assert scores(direct) == scores(found[0])


def centered_linker():
    """A linker with both kinds of statistics: BM25's and a mean of features."""
    linker = lexical_linker()
    torch.manual_seed(0)
    units = {"names": Lexical, "cosine": lambda dims: GlobalCosine(dims, centered=True)}
    return Linker(MIMIC(CLIPEncoder(**tiny.ENCODER), linker.model.processor, units=units).eval())


@pytest.mark.parametrize("repair", ["update", "delete"])
def test_a_damaged_entity_can_be_repaired_and_is_counted_no_more(tmp_path, caplog, repair):
    """What its lost text and states have added to the statistics is unknown: those of all others are counted again."""
    asked = {"mention": "jaguar", "sentence": "the jaguar animal company"}
    entities = [*ENTITIES, {"id": "R", "name": "jaguar", "attr": "a company of amazon"}, ENTITIES[0] | {"id": "S"}]
    linker = centered_linker()
    linker.index(entities, tmp_path / "kb", show_progress_bar=False)
    (path,) = (tmp_path / "kb" / "data").iterdir()
    flip_bit(path, path.read_bytes().index(b"a company of amazon") + 12)
    linker = linker.with_knowledge_base(tmp_path / "kb")
    with pytest.raises(StoreError, match="'R' with the order number 9 fails its checksum"):
        linker.link(asked, top_k=None)
    assert not caplog.messages
    if repair == "update":
        kb = linker.update_entities([entities[9]])
    else:
        kb = linker.delete_entities(["R"])
        del entities[9]
    assert any("has damaged entities: its statistics are counted again" in message for message in caplog.messages)
    assert kb.verify() == []
    new = centered_linker()
    new = new.with_knowledge_base(new.index(entities, tmp_path / "new", show_progress_bar=False))
    assert scores(linker.link(asked, top_k=None)) == scores(new.link(asked, top_k=None))
    lexicons = [each.model.processor.features["lexical"] for each in (linker, new)]
    assert frequencies(lexicons[0]) == frequencies(lexicons[1])


def test_a_knowledge_base_that_has_drifted_is_reported(tmp_path, caplog):
    linker = Linker.zero_shot()
    linker = linker.with_knowledge_base(linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False))
    linker.add_entities([{"id": "R", "name": "jaguar", "attr": "a company"}])
    assert not caplog.messages and linker.knowledge_base.statistics(DRIFT) is None
    long = {"name": "jaguar", "attr": "animal company " * 20}
    linker.add_entities([{**long, "id": "long"}])
    linker.add_entities([{**long, "id": "longer"}])
    (advice,) = caplog.messages
    drift = linker.model.processor.drifted["lexical"]
    assert drift > 0.2 and "again, in another folder, is advised" in advice and "lexical by " in advice
    assert linker.knowledge_base.statistics(DRIFT) == {"lexical": drift}
    Linker(linker.model).with_knowledge_base(tmp_path / "kb")
    assert len(caplog.messages) == 2 and f"{drift:.0%}" in caplog.messages[1]
    assert linker.delete_entities(["long", "longer"]).statistics(DRIFT) == {}


def test_public_names():
    assert mimic_pl.Linker is Linker and mimic_pl.Links is Links
    assert {"Linker", "Link", "Links", "KnowledgeBase"} <= set(mimic_pl.__all__)


def test_an_indexing_killed_at_its_very_beginning_goes_on(tmp_path, monkeypatch):
    linker = Linker.zero_shot()  # BM25, whose statistics are not known yet
    monkeypatch.setattr(KnowledgeBase, "indexing", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)
    monkeypatch.undo()
    assert len(linker.index(ENTITIES, tmp_path / "kb", show_progress_bar=False)) == 9
    kb = linker.index([*ENTITIES, {"id": "R", "name": "r", "attr": ""}], tmp_path / "kb", show_progress_bar=False)
    found = linker.with_knowledge_base(kb).link({"mention": "jaguar", "sentence": "the jaguar"}, top_k=None)
    assert len(kb) == 10 and len(found) == 10
