"""Retrieval by the vectors of one unit: what is searched, what is built again, and what a trained unit finds."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
import yaml

from mimic_pl import MIMIC, CompactVector, Linker, MELDataModule, Unit
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.retrieval import LanceRetriever, retriever_of
from mimic_pl.retrieval.catch_up import FOLDER, KeyVectors
from mimic_pl.retrieval.engines import settings_of
from tests import tiny
from tests.launch import needs_fork
from tests.retrieval.engines import DERIVED, entities, mentions, queries_of
from tests.training import UNITS, make_trainer

pytestmark = [pytest.mark.own_process, needs_fork]

COUNT = 60
ENGINES = ("lance", "faiss", pytest.param("milvus lite", marks=pytest.mark.slow))


class WithoutVectors(Unit):
    def mention(self, features):
        return {"text": features.text_global}

    entity = mention

    def score(self, mentions, entities):
        return -torch.cdist(mentions["text"], entities["text"])


def model_with(compact):
    torch.manual_seed(0)
    units = {**UNITS, "plain": WithoutVectors, **{name: partial(CompactVector, width=width) for name, width in compact}}
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=units, optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3)).eval()


def linker_of(folder, *compact):
    linker = Linker(model_with(compact))
    linker.index(entities(COUNT), folder / "kb", show_progress_bar=False)
    return linker.with_knowledge_base(folder / "kb")


def shown(links):
    return [(link.entity.id, link.score, link.units) for link in links]


@pytest.mark.parametrize("engine", ENGINES)
def test_with_k_of_all_links_are_those_of_the_exact_ranking(tmp_path, engine):
    exact = linker_of(tmp_path, ("compact", 8))
    linker = exact.with_retriever(DERIVED[engine](k=COUNT, unit="compact"))
    expected, found = (each.link(mentions(), top_k=COUNT) for each in (exact, linker))
    assert [shown(links) for links in found] == [shown(links) for links in expected]


@pytest.mark.parametrize("engine", ENGINES)
def test_its_vectors_are_searched_and_built_again_when_the_unit_changes(tmp_path, engine):
    linker = linker_of(tmp_path, ("one", 8), ("other", 8))
    with torch.no_grad():
        linker.model.matcher.units["other"].projection.weight.normal_()
    kb, model, queries = linker.knowledge_base, linker.model, queries_of(linker, mentions())
    widths = {}
    for unit in ("one", "other", None, "one"):
        opened = DERIVED[engine](unit=unit).at(kb, model)
        keys = KeyVectors(model, unit)(kb, kb.index.order).half().double()
        query = model.matcher.query_vectors(queries.states, unit).detach()
        best = kb.index.order[(query.double() @ keys.T).topk(7).indices]
        found = opened._vectors.nearest(query.numpy(), 7, None)
        assert (
            sum(len({*own.tolist()} & {*row.tolist()}) for own, row in zip(found, best, strict=True)) >= 0.97 * 7 * 12
        )
        widths[unit] = opened._vectors.width
    assert widths == {"one": 8, "other": 8, None: KeyVectors(model)(kb, kb.index.order).shape[1]}


def test_words_in_a_store_of_their_own_are_not_built_again(tmp_path):
    linker = linker_of(tmp_path, ("compact", 8))
    DERIVED["faiss"]().at(linker.knowledge_base, linker.model)
    texts = linker.knowledge_base.folder / FOLDER / "texts"
    before = {path: path.stat().st_mtime_ns for path in texts.rglob("*")}
    DERIVED["faiss"](unit="compact").at(linker.knowledge_base, linker.model)
    assert {path: path.stat().st_mtime_ns for path in texts.rglob("*")} == before


def test_a_file_of_settings_names_the_unit_and_wrong_ones_are_errors(tmp_path):
    linker = linker_of(tmp_path, ("compact", 8))
    file = tmp_path / "retriever.yaml"
    file.write_text("engine: lance\nk: 7\nunit: compact\n")
    retriever = retriever_of(file)
    assert isinstance(retriever, LanceRetriever) and (retriever.k, retriever.unit) == (7, "compact")
    assert settings_of(retriever) == yaml.safe_load(file.read_text())
    assert retriever.at(linker.knowledge_base, linker.model)._vectors.width == 8
    with pytest.raises(ConfigError, match="no unit 'compakt': the model has"):
        linker.with_retriever(LanceRetriever(unit="compakt"))
    with pytest.raises(ConfigError, match="'plain' has no vectors"):
        linker.with_retriever(LanceRetriever(unit="plain"))


def test_a_trained_one_finds_the_first_of_the_exact_ranking(tmp_path):
    """By vectors alone, one candidate of 12, for more than two in three mentions."""
    root = tiny.write_set(tmp_path / "Tiny", splits={"train": 20, "dev": 7, "test": 40})
    model = model_with([("compact", 8)])
    make_trainer(tmp_path, max_epochs=20, limit_val_batches=0).fit(
        model, MELDataModule(str(root), name="Tiny", batch_size=8, num_workers=0)
    )
    linker = Linker(model.eval())
    records = [
        {
            **{"id": entity["qid"], "name": entity["entity_name"], "attr": entity["attr"]},
            "images": [str(root / "kb_image" / name) for name in entity["image_list"]],
        }
        for entity in json.loads((root / "kb_entity.json").read_text())
    ]
    linker.index(records, tmp_path / "kb", show_progress_bar=False)
    linker = linker.with_knowledge_base(tmp_path / "kb")
    given = [
        {
            **{"mention": mention["mentions"], "sentence": mention["sentence"]},
            "image": str(root / "mention_images" / mention["imgPath"]),
        }
        for mention in json.loads((root / "Tiny_test.json").read_text())
    ]
    opened = LanceRetriever(unit="compact").at(linker.knowledge_base, linker.model)
    queries = model.matcher.query_vectors(queries_of(linker, given).states, "compact").detach().numpy()
    nearest = [linker.knowledge_base.ids_of(order) for order in opened._vectors.nearest(queries, 1, None)]
    first = [links[0].entity.id for links in linker.link(given, top_k=1)]
    assert len({*first}) > 5
    assert sum(one == [other] for one, other in zip(nearest, first, strict=True)) > 2 / 3 * len(first)
