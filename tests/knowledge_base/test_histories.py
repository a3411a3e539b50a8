"""Whatever the history of a knowledge base, the same entities rank in the same order, to the last digit and tie."""

from __future__ import annotations

import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking import MemoryIndex, Ranker
from tests import reference
from tests.knowledge_base.parts import DESCRIPTION, MENTIONS, content, record, states_of
from tests.ranking.tables import table_matcher

pytestmark = pytest.mark.own_process

IDS = [f"Q{n}" for n in range(9)] + ["it's", "é\\", "ä\u0000b", 'a "name"', "%", "x;y"]
CHANGES = ("add", "add", "update", "delete", "delete", "compact", "reopen", "index")


def play(data, folder, dtype):
    """A random history; returns the knowledge base and what it must contain: order number and record by id."""
    kb = KnowledgeBase.create(folder, DESCRIPTION, dtype)
    numbers, alive = {}, {}
    for change in data.draw(st.lists(st.sampled_from(CHANGES), max_size=9)):
        if change == "compact":
            kb = kb.compact(keep_hours=data.draw(st.sampled_from([0, 1])))
        elif change == "reopen":
            kb = KnowledgeBase(folder, expects=DESCRIPTION)
        else:
            known = change in ("update", "delete")
            choices = [id for id in IDS if (id in alive) == known]
            if not choices:
                continue
            ids = data.draw(st.lists(st.sampled_from(choices), min_size=1, max_size=6, unique=True))
            groups = st.integers(0, 3)
            entities = [record(id, data.draw(groups), **data.draw(TEXTS)) for id in ids]
            if change == "delete":
                kb = kb.delete(ids)
                for id in ids:
                    del alive[id]
                continue
            if change == "update":
                kb = kb.update(entities, states_of(entities))
            elif change == "add":
                kb = kb.add(entities, states_of(entities))
            else:
                with kb.indexing() as indexing:
                    for entity in entities:
                        indexing.add([entity], states_of([entity]))
                kb = KnowledgeBase(folder)
            for entity in entities:
                numbers.setdefault(entity.id, len(numbers))
                alive[entity.id] = entity
    return kb, {id: (numbers[id], entity) for id, entity in alive.items()}


TEXTS = st.dictionaries(st.sampled_from(["type", "a.b", "id", "Ünit", "order", ""]), st.text(max_size=3), max_size=2)


def ranks_as_its_last_entities(data):
    with tempfile.TemporaryDirectory() as folder:
        kb, expected = play(data, folder, data.draw(st.sampled_from(["float32", "bfloat16", "int8", "int4"])))
        assert {id: (number, entity) for id, (number, entity, _) in content(kb).items()} == expected
        assert len(kb) == len(expected) and kb.verify() == []
        if not expected:
            return
        ids = sorted(expected, key=lambda id: expected[id][0])
        order = torch.tensor([expected[id][0] for id in ids])
        entities = [expected[id][1] for id in ids]
        assert torch.equal(kb.order_of(ids), order) and kb.ids_of(order) == ids
        table = states_of(entities)["text"]["column"]
        golds = [[data.draw(st.integers(0, len(ids) - 1))] for _ in range(MENTIONS)]
        in_memory = MemoryIndex(dtype=kb.dtype)
        shuffled = torch.tensor(data.draw(st.permutations(range(len(ids)))))
        some = [entities[row] for row in shuffled.tolist()]
        in_memory.add([entity.id for entity in some], states_of(some), order[shuffled])
        mentions = {"text": {"row": torch.arange(MENTIONS)}}
        gold = order[torch.tensor(golds)]
        for index in (kb.index, in_memory):
            ranker = Ranker(5, prune=data.draw(st.booleans()), pairs_per_block=data.draw(st.integers(1, 50)))
            ranking = ranker(table_matcher({"text": None}), mentions, index, gold)
            by_sorting = table.T.argsort(dim=1, descending=True, stable=True)[:, :5]
            assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(table.T, golds)
            assert torch.equal(ranking.top_entities, order[by_sorting])
            assert torch.equal(ranking.top_scores["overall"], table.T.gather(1, by_sorting))


@settings(max_examples=12)
@given(st.data())
def test_any_history_ranks_as_its_last_entities(data):
    ranks_as_its_last_entities(data)


@pytest.mark.slow
@settings(max_examples=200)
@given(st.data())
def test_many_histories_rank_as_their_last_entities(data):
    ranks_as_its_last_entities(data)
