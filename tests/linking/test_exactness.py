"""Links are those of `mimic-pl test`, to the last digit and the last tie."""

import json
from dataclasses import replace

import pytest
import torch

from mimic_pl import Linker, Ranker, load_run
from mimic_pl.cli import main
from mimic_pl.errors import ConfigError
from mimic_pl.linking import candidates
from tests.launch import in_own_process, needs_fork

pytestmark = [pytest.mark.own_process, needs_fork]


@pytest.fixture
def predicted(tested_run):
    lines = (tested_run / "predictions.jsonl").read_text().splitlines()
    return [[(c["qid"], c["scores"]) for c in json.loads(line)["candidates"]] for line in lines]


def as_predicted(links):
    assert links.error is None
    return [
        (
            link.entity.id,
            {"overall": round(link.score, 6), **{name: round(score, 6) for name, score in link.units.items()}},
        )
        for link in links
    ]


@pytest.fixture(scope="module")
def records(tested_run):
    """Entities and test mentions of the run."""
    data = load_run(tested_run)[1]
    data.setup("test")
    return data.ranked.entities, data.mentions["test"]


@pytest.fixture(scope="module")
def linker(tested_run):
    """A linker of the run without a knowledge base. Each test has its own copy, in its own process."""
    return Linker.from_pretrained(tested_run, device="cpu")


@pytest.fixture(scope="module")
def folder(linker, records, tmp_path_factory):
    """A knowledge base of all entities, written by another process: those of the tests are forked from this one."""
    folder = tmp_path_factory.mktemp("exactness") / "kb"

    def write():
        linker.index(records[0], folder, batch_size=7, show_progress_bar=False)

    in_own_process(write)
    return folder


def test_links_are_the_predictions_of_test(linker, folder, records, predicted, monkeypatch):
    mentions = records[1]
    linker = linker.with_knowledge_base(folder)
    for size in (1, 3, 64):
        found = linker.link(mentions, top_k=15, batch_size=size)
        assert [as_predicted(links) for links in found] == predicted, size
        assert [links.number for links in found] == list(range(50))
    assert as_predicted(linker.link(mentions[3], top_k=15)) == predicted[3]
    priors = {max(link.units["prior"] for link in links.candidates) for links in found}
    assert min(priors) == 0 and max(priors) > 4, "of words that the alias table has, and of others"
    # Read from the folder in blocks, instead of being kept in memory.
    monkeypatch.setattr(candidates, "_RESIDENT_ON_CPU", 0)
    linker = linker.with_knowledge_base(folder)
    found = linker.link(mentions, top_k=15)
    assert [as_predicted(links) for links in found] == predicted
    assert len({link.score for link in found[0]}) < 15, "there are ties"


def test_a_knowledge_base_finds_its_model(linker, folder, records, tested_run, tmp_path):
    asked = replace(records[1][3], image=None)
    expected = as_predicted(linker.with_knowledge_base(folder).link(asked))
    for model in (None, tested_run):
        assert as_predicted(Linker.from_knowledge_base(folder, model, device="cpu").link(asked)) == expected
    Linker(linker.model).index(records[0], tmp_path / "kb", show_progress_bar=False)  # the model of no file
    with pytest.raises(ConfigError, match="does not say where its model is"):
        Linker.from_knowledge_base(tmp_path / "kb")


def test_top_k_none_scores_every_entity(linker, folder, records):
    entities, mentions = records
    links = linker.with_knowledge_base(folder).link(mentions[0], top_k=None)
    model = linker.model
    scores = model.score(model.encode_mentions([mentions[0]]), model.encode_entities(list(entities)))["overall"][0]
    own = {entity.id: float(score) for entity, score in zip(entities, scores, strict=True)}
    assert {link.entity.id: link.score for link in links} == pytest.approx(own, abs=1e-5)
    assert [link.score for link in links] == sorted((link.score for link in links), reverse=True)


def test_links_after_changes_are_those_of_a_new_knowledge_base(linker, folder, records, tmp_path):
    entities, mentions = records
    expected = [as_predicted(links) for links in linker.with_knowledge_base(folder).link(mentions)]

    kb = linker.index(list(entities)[:30], tmp_path / "some", show_progress_bar=False)
    changed = linker.with_knowledge_base(kb)
    before = changed.with_knowledge_base(kb)
    changed.add_entities(list(entities)[30:], batch_size=3)
    changed.delete_entities(["Q3", "Q35"])
    changed.update_entities([replace(entities[5], name="other")])
    assert [as_predicted(links) for links in changed.link(mentions)] != expected
    changed.add_entities([entities[35], entities[3]])
    kb = changed.update_entities([entities[5]])
    assert [as_predicted(links) for links in changed.link(mentions)] == expected
    assert kb.version == changed.knowledge_base.version and len(kb) == 40
    assert len(before.link(mentions[0], top_k=None)) == 30, "a linker keeps the version that it opened"


def test_restricted_links_are_those_of_a_knowledge_base_of_these_entities(linker, records, tmp_path):
    entities, mentions = records
    typed = [replace(entity, fields={**entity.fields, "type": entity.fields["attr"]}) for entity in entities]
    linker = linker.with_knowledge_base(linker.index(typed, tmp_path / "kb", show_progress_bar=False))
    model = linker.model

    def expected(mention, chosen):
        index = model.build_index(chosen)
        ranking = Ranker(10)(model.matcher, model.encode_mentions([mention]), index)
        return list(zip(index.ids_of(ranking.top_entities[0]), ranking.top_scores["overall"][0].tolist(), strict=True))

    def found(links):
        assert links.error is None, links.error
        return [(link.entity.id, link.score) for link in links]

    rivers = [entity for entity in typed if entity.fields["type"] == "a river"]
    some = [entity for entity in typed if entity.id in ("Q4", "Q1", "Q30")]
    restrictions = [
        ({}, typed),
        ({"entity_type": "a river"}, rivers),
        ({"candidates": json.dumps(["Q30", "Q4", "Q1", "Q4"])}, some),
        ({"filter": "name = 'jaguar'"}, [entity for entity in typed if entity.name == "jaguar"]),
        ({"entity_type": "a river", "filter": "name = 'jaguar' or name = 'amazon'"},
         [entity for entity in rivers if entity.name in ("jaguar", "amazon")]),
        ({"candidates": "Q2", "entity_type": "a river"}, [entity for entity in rivers if entity.id == "Q2"]),
    ]  # fmt: skip
    asked = [
        replace(mentions[n], fields={**mentions[n].fields, **restrictions[n % len(restrictions)][0]}) for n in range(18)
    ]
    for size in (1, 18):
        for n, links in enumerate(linker.link(asked, batch_size=size)):
            assert found(links) == expected(mentions[n], restrictions[n % len(restrictions)][1]), n
    for links in linker.link(mentions[:5], filter="attr like '%river'"):
        assert found(links) == expected(links.mention, rivers)
    nothing = linker.link(asked[:2], filter="name = 'none of them'")
    assert [(len(links), links.error, links.is_nil) for links in nothing] == [(0, None, True)] * 2


def test_a_state_does_not_depend_on_the_batch(linker, records):
    model, mentions = linker.model, records[1][:13]
    together = model.encode_mentions(mentions)
    for size in (1, 2, 5, 6):
        apart = model.encode_mentions(mentions, batch_size=size)
        for unit, state in together.items():
            for name, tensor in state.items():
                assert torch.equal(tensor, apart[unit][name]), (size, unit, name)


def test_an_exported_model_links_as_its_run(tested_run, linker, folder, records, tmp_path):
    mentions = records[1]
    linker = linker.with_knowledge_base(folder)
    assert main(["export", str(tested_run), str(tmp_path / "exported")]) is None
    exported = Linker.from_pretrained(tmp_path / "exported", device="cpu").with_knowledge_base(folder)
    asked = [replace(mention, image=None) for mention in mentions[:9]]
    assert [as_predicted(links) for links in exported.link(asked)] == [as_predicted(one) for one in linker.link(asked)]
    checkpoint = Linker.from_pretrained(next((tested_run / "checkpoints").glob("epoch*.ckpt")))
    assert [as_predicted(links) for links in checkpoint.with_knowledge_base(folder).link(asked)] == [
        as_predicted(links) for links in linker.link(asked)
    ]
