"""What every retriever must do, whatever its engine."""

import random
import shutil
import sys
import time
from argparse import Namespace

import numpy as np
import pytest
import torch

from mimic_pl import KnowledgeBase, Linker
from mimic_pl.cli.link import _job
from mimic_pl.errors import ConfigError
from mimic_pl.retrieval import Allowed, ExactRetriever, FaissRetriever, LanceRetriever, retriever_of
from mimic_pl.retrieval.catch_up import FOLDER, KeyVectors
from mimic_pl.retrieval.lance_store import LanceStore
from mimic_pl.serve.served_linker import ServedLinker
from mimic_pl.units import WeightedMatcher
from tests.launch import FORK, in_own_process, needs_fork, received
from tests.retrieval.engines import (
    DERIVED,
    ENGINES,
    ENTITIES,
    RARE,
    copied,
    entities,
    indexed,
    mentions,
    model_of,
    queries_of,
)
from tests.slow import some_slow

pytestmark = [pytest.mark.own_process, needs_fork]

SLOW = {"lance, graph", "milvus lite"}


def scores(links):
    return [(link.entity.id, link.score, link.units) for link in links]


def overall(links):
    """Ids and scores; in a batch of another size, products may differ in the last bit."""
    return [(link.entity.id, pytest.approx(link.score, rel=1e-6)) for link in links]


def ids(links):
    return [link.entity.id for link in links]


@pytest.mark.parametrize("engine", some_slow(ENGINES, SLOW))
def test_with_k_of_all_links_are_those_of_the_exact_ranking(tmp_path, whole, engine):
    exact = copied(whole, tmp_path)
    linker = exact.with_retriever(ENGINES[engine](k=ENTITIES))
    expected, found = exact.link(mentions(), top_k=ENTITIES), linker.link(mentions(), top_k=ENTITIES)
    for one, other in zip(expected, found, strict=True):
        assert scores(one) == scores(other) and len(other) == ENTITIES


@pytest.mark.parametrize("engine", some_slow(ENGINES, SLOW))
def test_scores_are_exact_and_the_first_is_found(tmp_path, whole, engine):
    exact = copied(whole, tmp_path)
    linker = exact.with_retriever(ENGINES[engine](k=60))
    firsts = 0
    for record in mentions():
        everything = {id: (score, units) for id, score, units in scores(exact.link(record, top_k=None))}
        links = linker.link(record, top_k=5)
        assert len(links) == 5
        assert [(link.score, link.units) for link in links] == [everything[link.entity.id] for link in links]
        firsts += ids(links)[0] == next(iter(everything))
    # Of random weights: the vectors leave out VDLU and attention, which an eighth of all entities as candidates covers.
    assert firsts >= 10


@pytest.mark.parametrize("engine", some_slow(ENGINES, SLOW))
def test_links_depend_neither_on_the_batch_nor_on_its_order(tmp_path, whole, engine):
    linker = copied(whole, tmp_path).with_retriever(ENGINES[engine](k=20))
    records = [*mentions(), {**mentions()[0], "entity_type": "rare"}]
    expected = [overall(linker.link(record, top_k=4)) for record in records]
    assert [overall(links) for links in linker.link(records, top_k=4)] == expected
    turned = linker.link(records[::-1], top_k=4, batch_size=3)
    assert [overall(links) for links in turned] == expected[::-1]


@pytest.mark.parametrize("engine", some_slow(ENGINES, SLOW))
def test_conditions_hold_before_the_search(tmp_path, whole, engine):
    exact = copied(whole, tmp_path)
    linker = exact.with_retriever(ENGINES[engine](k=5))
    rare = {entity["id"] for entity in entities() if entity["type"] == "rare"}
    some = [f"Q{n}" for n in range(0, 90, 3)]
    for conditions, allowed in (
        ({"entity_type": "rare"}, rare),
        ({"filter": "type = 'rare' and id < 'Q2'"}, {id for id in rare if id < "Q2"}),
        ({"candidates": some}, {*some}),
        ({"candidates": some, "entity_type": "rare"}, {*some} & rare),
        ({"candidates": ["Q7"]}, {"Q7"}),
        ({"filter": "type = 'none'"}, set()),
    ):
        for record in mentions():
            found = ids(linker.link({**record, **conditions}, top_k=5))
            assert {*found} <= allowed and len(found) == len({*found}) == min(5, len(allowed))
    # The engine itself, beyond what ranking would exclude again.
    kb = linker.knowledge_base
    allowed = Allowed(kb.where("type = 'rare'"), "type = 'rare'")
    for given in (allowed, Allowed(allowed.order)):
        for found in (
            linker.retriever.at(kb, linker.model).retrieve(queries_of(linker, mentions()), 10, given)
            if (linker.retriever)
            else ()
        ):
            assert 10 <= len(found) <= RARE and bool(torch.isin(found, allowed.order).all())
    if linker.retriever:
        some = linker.retriever.at(kb, linker.model).retrieve(queries_of(linker, mentions()), 3, allowed)
        assert all(6 <= len(found) <= 12 for found in some), "6 by vectors, and up to 3 by each kind of words"


@pytest.mark.parametrize("engine", some_slow(ENGINES, SLOW))
def test_changes_are_seen_at_once(tmp_path, whole, engine):
    linker = copied(whole, tmp_path).with_retriever(ENGINES[engine](k=3))
    before = linker.with_retriever(linker.retriever)
    record = {"mention": "zebra quagga", "sentence": "a zebra quagga"}

    def contains(id, expected):
        # Of all links, since the model does not know the word: only the retriever decides.
        for each in (linker, linker.with_knowledge_base(tmp_path / "kb")):
            everything = each.link(record, top_k=4) if each.retriever else each.link(record, top_k=None)
            candidates = (
                each.retriever.at(each.knowledge_base, each.model).retrieve(queries_of(each, [record]))[0]
                if each.retriever
                else None
            )
            there = id in (ids(everything) if candidates is None else each.knowledge_base.ids_of(candidates))
            assert there is expected

    contains("new", False)
    linker.add_entities([{"id": "new", "name": "zebra quagga", "attr": "striped", "type": "rare"}])
    contains("new", True)
    linker.update_entities([{"id": "Q5", "name": "quagga zebra", "attr": "extinct", "type": "rare"}])
    contains("Q5", True)
    assert "Q5" in ids(linker.link({**record, "filter": "attr = 'extinct'"}))
    linker.delete_entities(["new"])
    contains("new", False)
    contains("Q5", True)
    linker.update_entities([{"id": "Q5", "name": "plain", "attr": "other", "type": "common"}])
    if linker.retriever:
        contains("Q5", False)
    # The linker from before keeps its version.
    assert before.knowledge_base.version < linker.knowledge_base.version
    assert len(before.link(record, top_k=None)) == ENTITIES
    assert {*ids(before.link(record, top_k=4))} <= {entity["id"] for entity in entities()}


def rows_of(retriever):
    """Vectors and rows of an opened retriever's stores, by what they must agree with."""
    stores = {id(store): store for store in (retriever._vectors, retriever._texts)}
    return [store.rows() for store in stores.values()]


def assert_equals_knowledge_base(retriever):
    kb = retriever.knowledge_base
    order, checksums = (part.numpy() for part in kb.checksums())
    for stored, stored_checksums in rows_of(retriever):
        ascending = np.argsort(stored)
        np.testing.assert_array_equal(stored[ascending], order)
        np.testing.assert_array_equal(stored_checksums[ascending], checksums)


@pytest.mark.parametrize("engine", some_slow(DERIVED, SLOW))
def test_what_is_derived_follows_the_knowledge_base(tmp_path, whole, engine):
    linker = copied(whole, tmp_path)
    retriever, kb = DERIVED[engine](), linker.knowledge_base
    assert_equals_knowledge_base(retriever.at(kb, linker.model))
    # Changes of others, several versions at once, without a retriever.
    linker.delete_entities(["Q0", "Q7"])
    linker.update_entities([{**entities()[3], "attr": "new"}])
    linker.add_entities([{**entities()[0], "attr": "again"}])
    opened = retriever.at(linker.knowledge_base, linker.model)
    assert_equals_knowledge_base(opened)
    built = np.sort(opened._vectors.nearest(np.ones((1, opened._vectors.width), np.float32), 400, None)[0].numpy())
    np.testing.assert_array_equal(built, linker.knowledge_base.checksums()[0].numpy())
    # A reader of an old version neither turns it back nor finds what is not there.
    old = KnowledgeBase(kb.folder, version=kb.version)
    found = retriever.at(old, linker.model).retrieve(queries_of(linker, mentions()), 300)
    assert all(bool(old.index.holds(order).all()) for order in found)
    assert retriever.at(linker.knowledge_base, linker.model)._vectors.version == linker.knowledge_base.version


@pytest.mark.parametrize("engine", some_slow(DERIVED, SLOW))
def test_with_other_weights_it_is_built_again(tmp_path, engine):
    linker = Linker(model_of(matcher=WeightedMatcher))
    linker.index(entities(), tmp_path / "kb", show_progress_bar=False)
    kb, retriever = KnowledgeBase(tmp_path / "kb"), DERIVED[engine]()
    weights = torch.tensor([0.01, 0.01, 20.0, 0.01])  # of text, vision, cross_modal and means
    linker.model.matcher.set_weights(weights.roll(1))
    linker.model.eval()
    retriever.at(kb, linker.model)
    before = KeyVectors(linker.model)(kb, kb.index.order).numpy()
    linker.model.matcher.set_weights(weights)  # as calibration does
    linker.model.eval()
    opened = retriever.at(kb, linker.model)
    assert_equals_knowledge_base(opened)
    query = np.random.default_rng(0).normal(size=(4, opened._vectors.width)).astype(np.float32)
    found = opened._vectors.nearest(query, 40, None)

    def nearest_that_are_found(vectors):
        nearest = np.argsort(-query @ vectors.T)[:, :10]
        return sum(
            np.isin(kb.index.order.numpy()[row], order.numpy()).sum() for row, order in zip(nearest, found, strict=True)
        )

    # An index of Lance's is approximate, and every one is built from other random numbers.
    assert nearest_that_are_found(KeyVectors(linker.model)(kb, kb.index.order).numpy()) >= 32
    assert nearest_that_are_found(before) < 24


@pytest.mark.parametrize("engine", some_slow(DERIVED, SLOW))
def test_vectors_whose_mean_has_moved_are_computed_again(tmp_path, whole, engine):
    linker = indexed(tmp_path, count=40)
    retriever = DERIVED[engine]()
    opened = retriever.at(linker.knowledge_base, linker.model)
    words = ["river", "sea", "sells", "flows", "shares"]
    far = [
        {"id": f"F{n}", "name": "river sea", "attr": " ".join(random.Random(n).choices(words, k=7)), "type": "far"}
        for n in range(400)
    ]
    linker.add_entities(far)
    kb = linker.knowledge_base
    before = KeyVectors(opened.model)(kb, kb.index.order[:40])
    after = KeyVectors(linker.model)(kb, kb.index.order[:40])
    assert (before - after).norm() > 0.05 * before.norm()
    opened = retriever.at(kb, linker.model)
    # The products of stored vectors with unit vectors of the largest dimensions tell what is stored.
    query = (after[:1] / after[:1].norm()).numpy()
    products = query @ KeyVectors(linker.model)(kb, kb.index.order).numpy().T
    found = opened._vectors.nearest(query, 10, None)[0].numpy()
    threshold = np.sort(products[0])[-10]
    places = np.searchsorted(kb.index.order.numpy(), found)
    assert (products[0][places] >= threshold - 0.05 * abs(threshold)).all()


@pytest.mark.parametrize("engine", ["lance", "faiss"])
def test_the_nearest_are_those_of_brute_force(tmp_path, whole, engine):
    linker = copied(whole, tmp_path)
    kb = linker.knowledge_base
    opened = DERIVED[engine]().at(kb, linker.model)
    keys = KeyVectors(linker.model)(kb, kb.index.order).half().float()
    query = linker.model.matcher.query_vectors(queries_of(linker, mentions()).states).detach()
    found = opened._vectors.nearest(query.numpy(), 7, None)
    expected = kb.index.order[(query.double() @ keys.double().T).topk(7).indices]
    for own, other in zip(found, expected, strict=True):
        assert own.sort().values.tolist() == other.sort().values.tolist()


def test_words_are_found_in_names_and_texts(tmp_path):
    linker = indexed(tmp_path, count=30)
    linker.add_entities(
        [
            {"id": "band", "name": "The Who", "attr": "plays", "type": "band"},
            {"id": "film", "name": "It", "attr": "a clown, by King", "type": "film"},
            {"id": "accent", "name": "Café Müller", "attr": "dances", "type": "play"},
        ]
    )
    kb = linker.knowledge_base
    opened = LanceRetriever(k=2).at(kb, linker.model)

    def found(mention, sentence=""):
        return kb.ids_of(opened.retrieve(queries_of(linker, [{"mention": mention, "sentence": sentence}]))[0])

    assert "band" in found("the who") and "film" in found("IT") and "accent" in found("cafe muller")
    assert "film" in found("x", "a clown in a book")
    assert opened._texts.matching("#text", ["a the in it"], 5, None)[0].tolist() == []  # stop words


def test_a_damaged_or_deleted_copy_is_made_again(tmp_path, whole):
    linker = copied(whole, tmp_path)
    kb = linker.knowledge_base
    for name, make in (("lance", LanceRetriever), ("faiss", DERIVED["faiss"])):
        make().at(kb, linker.model)
        folder = kb.folder / FOLDER / name
        files = [path for path in folder.rglob("*") if path.is_file()]
        for path in files:
            if path.suffix in (".manifest", ".faiss"):
                path.unlink()
        assert_equals_knowledge_base(make().at(kb, linker.model))
    damaged = next((kb.folder / FOLDER / "faiss").glob("*.faiss"))
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 16
    damaged.write_bytes(content)
    assert_equals_knowledge_base(DERIVED["faiss"]().at(kb, linker.model))
    assert kb.verify() == []


def build(folder, engine, sender, slow):
    """Catch up as a process that is killed sometime does."""
    from mimic_pl.retrieval import catch_up as module

    torch.set_num_threads(1)
    module._AT_ONCE = 16
    linker = indexed_before(folder)
    sender.send("ready")
    if slow:
        add = LanceStore.add

        def slowly(self, rows):
            time.sleep(0.01)
            add(self, rows)

        LanceStore.add = slowly
    DERIVED[engine]().at(linker.knowledge_base, linker.model)
    sender.send("done")


def indexed_before(folder):
    from mimic_pl import Linker

    return Linker(model_of()).with_knowledge_base(folder / "kb")


@pytest.mark.parametrize("engine", [pytest.param("lance, indexed", marks=pytest.mark.slow), "faiss, indexed"])
def test_killed_while_it_builds_or_catches_up_it_goes_on(tmp_path, whole, engine):
    DERIVED[engine]()  # skips here, and not in a process, if the engine is not installed

    shutil.copytree(whole, tmp_path / "kb")
    killed = 0
    for round in range(6):
        receiver, sender = FORK.Pipe(duplex=False)
        process = FORK.Process(target=build, args=(tmp_path, engine, sender, True))
        process.start()
        assert received(receiver, process) == "ready"
        time.sleep(0.02 + 0.08 * round)
        process.kill()
        process.join()
        killed += not receiver.poll()
        if round == 3:  # from now on it catches up

            def change():
                torch.set_num_threads(1)
                linker = indexed_before(tmp_path)
                DERIVED[engine]().at(linker.knowledge_base, linker.model)
                linker.update_entities([{**entity, "attr": "other"} for entity in entities()[:200]])
                linker.delete_entities([f"Q{n}" for n in range(250, 300)])

            in_own_process(change)
    assert killed >= 3

    def check():
        torch.set_num_threads(1)
        linker = indexed_before(tmp_path)
        assert_equals_knowledge_base(DERIVED[engine]().at(linker.knowledge_base, linker.model))
        assert len(linker.with_retriever(DERIVED[engine](k=10)).link(mentions()[0], top_k=4)) == 4

    in_own_process(check)


def test_missing_packages_and_wrong_settings_are_named(tmp_path, monkeypatch):
    linker = indexed(tmp_path, count=8)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"faiss.*mimic-pl\[faiss\]"):
        linker.with_retriever("faiss")
    with pytest.raises(ConfigError, match="no retriever 'lancet'"):
        linker.with_retriever("lancet")
    with pytest.raises(ConfigError, match="k"):
        retriever_of("lance", k=0)
    settings = tmp_path / "retriever.yaml"
    settings.write_text("engine: lance\nk: 7\nindex: IVF_HNSW_SQ\n")
    made = retriever_of(settings)
    assert isinstance(made, LanceRetriever) and (made.k, made.index) == (7, "IVF_HNSW_SQ")
    assert retriever_of(settings, k=9).k == 9
    settings.write_text("engine: lance\nkk: 7\n")
    with pytest.raises(ConfigError, match="'kk'"):
        retriever_of(settings)
    settings.write_text("engine: oracle\n")
    with pytest.raises(ConfigError, match="'oracle'"):
        retriever_of(settings)


def test_an_empty_knowledge_base_has_no_links(tmp_path):
    linker = indexed(tmp_path, count=1).with_retriever("lance")
    linker.delete_entities(["Q0"])
    assert len(linker.link(mentions()[0])) == 0
    linker.add_entities(entities(3))
    assert len(linker.link(mentions()[0])) == 3


def test_names_of_engines():
    assert isinstance(retriever_of("exact"), ExactRetriever) and isinstance(retriever_of("faiss"), FaissRetriever)
    assert isinstance(retriever_of("lance"), LanceRetriever)


def test_an_interrupted_command_does_not_go_on_with_another_retriever(tmp_path, whole):
    linker = copied(whole, tmp_path)
    config = Namespace(top_k=3, filter=None, format=None, image_folder=None, certify=False)
    jobs = [
        _job(config, tmp_path / "m.jsonl", linker.with_retriever(retriever))
        for retriever in (None, "exact", LanceRetriever(k=5), LanceRetriever(k=5), LanceRetriever(k=6), "lance")
    ]
    assert jobs[0] == jobs[1] and jobs[2] == jobs[3] and len({*jobs}) == 4


def test_a_served_linker_follows_changes_of_others(tmp_path, whole):
    linker = copied(whole, tmp_path)
    served = ServedLinker(linker.with_retriever("lance", k=3), refresh=0.0)
    record = {"mention": "zebra quagga", "sentence": "a zebra", "entity_type": "striped"}
    assert len(served.link([record], 5)[0]) == 0
    linker.add_entities([{"id": f"S{n}", "name": "zebra quagga", "attr": "a", "type": "striped"} for n in range(9)])
    (links,) = served.link([record], 5)
    assert len(links) == 5 and {*ids(links)} < {f"S{n}" for n in range(9)}
