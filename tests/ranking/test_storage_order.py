"""Storage order has no effect: only order numbers decide ranks and top entities, however an index was built."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.ranking import MemoryIndex, Ranker
from tests import reference
from tests.ranking.tables import add, table_matcher


@st.composite
def knowledge_bases(draw):
    """Score tables with few distinct values, hence many ties, and the order numbers of the entities."""
    num_mentions, num_entities = draw(st.integers(1, 4)), draw(st.integers(1, 60))
    groups = draw(st.integers(1, 6))  # entities of one group have equal states
    group = torch.tensor(draw(st.lists(st.integers(0, groups - 1), min_size=num_entities, max_size=num_entities)))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5]), min_size=groups, max_size=groups)
    tables = {
        name: torch.tensor([draw(values) for _ in range(num_mentions)])[:, group] for name in ("exact", "bounded")
    }
    numbers = sorted(draw(st.sets(st.integers(0, 500), min_size=num_entities, max_size=num_entities)))
    return tables, torch.tensor(numbers)


def indexed(draw, tables, numbers):
    """An index with the entities stored in any order, added in batches of any size."""
    columns = torch.tensor(draw(st.permutations(range(len(numbers)))))
    index = MemoryIndex(capacity=draw(st.sampled_from([0, len(numbers)])))
    while len(columns):
        size = draw(st.integers(1, len(columns)))
        batch, columns = columns[:size], columns[size:]
        states = {name: {"column": table[:, batch].T.contiguous()} for name, table in tables.items()}
        add(index, states, numbers[batch])
    return index


@pytest.mark.slow
@settings(max_examples=150)
@given(st.data())
def test_ranking_does_not_depend_on_how_the_index_was_built(data):
    tables, numbers = data.draw(knowledge_bases())
    num_mentions = len(tables["exact"])
    places = st.lists(st.integers(0, len(numbers) - 1), max_size=3, unique=True)
    golds = [data.draw(places) for _ in range(num_mentions)]
    width = max(1, *map(len, golds))
    gold = torch.tensor([[int(numbers[g]) for g in own] + [-1] * (width - len(own)) for own in golds])
    top_k = data.draw(st.integers(1, 8))
    matcher = table_matcher({"exact": None, "bounded": data.draw(st.sampled_from([0.0, 0.4, 3.0]))})
    mentions = {name: {"row": torch.arange(num_mentions)} for name in tables}
    scores = {"overall": (tables["exact"] + tables["bounded"]) / 2, **tables}
    by_sorting = torch.stack([row.argsort(descending=True, stable=True)[:top_k] for row in scores["overall"]])
    for _ in range(2):
        index = indexed(data.draw, tables, numbers)
        ranker = Ranker(top_k, prune=data.draw(st.booleans()), pairs_per_block=data.draw(st.integers(1, 250)))
        ranking = ranker(matcher, mentions, index, gold)
        for name, table in scores.items():
            assert ranking.ranks[name].tolist() == reference.ranks_by_sorting(table, golds), name
            assert torch.equal(ranking.top_scores[name], table.gather(1, by_sorting)), name
        assert torch.equal(ranking.top_entities, numbers[by_sorting])
        assert index.ids_of(ranking.top_entities[0]) == [f"Q{number}" for number in ranking.top_entities[0].tolist()]


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize("storage", ["ascending", "descending", "any"])
def test_ties_are_listed_by_order_number(prune, storage):
    """Far more equal entities than the top list holds, in many blocks."""
    groups = torch.randint(0, 3, (3000,), generator=torch.Generator().manual_seed(0))
    table = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))[:, groups]
    columns = torch.arange(3000)
    if storage != "ascending":
        columns = columns.flip(0) if storage == "descending" else torch.randperm(3000)
    index = MemoryIndex()
    for batch in columns.split(700):
        add(index, {"vision": {"column": table[:, batch].T.contiguous()}}, 10 * batch)
    golds, mentions = [[0], [2999], [1500], [7]], {"vision": {"row": torch.arange(4)}}
    ranker = Ranker(prune=prune, pairs_per_block=4 * 250)
    ranking = ranker(table_matcher({"vision": None}), mentions, index, torch.tensor(golds) * 10)
    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(table, golds)
    assert torch.equal(ranking.top_entities, table.argsort(dim=1, descending=True, stable=True)[:, :10] * 10)
