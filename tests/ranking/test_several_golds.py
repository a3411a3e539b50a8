"""Ranks of every gold of a mention, against sorting the full score matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.units import Matcher
from tests.ranking.tables import TableUnit, add, pad, table_matcher, table_states
from tests.ranking.test_engine import DIMS, reference_scores, top_by_sorting, trained_like
from tests.reference import best_rank


def rank_every_gold(scores, gold):
    return [
        [best_rank(row, [g]) if g >= 0 else 0 for g in golds]
        for row, golds in zip(scores.tolist(), gold.tolist(), strict=True)
    ]


@settings(max_examples=60)
@given(st.data())
def test_every_gold_has_its_rank_in_one_sorted_list(data):
    num_mentions, num_entities = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 30))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_entities, max_size=num_entities)
    tables = {name: torch.tensor([data.draw(values) for _ in range(num_mentions)]) for name in ("expensive", "cheap")}
    positions = st.lists(st.integers(0, num_entities - 1), max_size=4, unique=True)
    gold = pad([data.draw(positions) for _ in range(num_mentions)])
    order = torch.tensor(data.draw(st.permutations(range(gold.shape[1]))), dtype=torch.int64)
    gold = gold[:, order]  # padding may be in any column
    ranker = Ranker(3, prune=data.draw(st.booleans()), pairs_per_block=data.draw(st.integers(1, 200)))
    index, mentions = table_states(tables)
    ranking = ranker(table_matcher({"expensive": 0.3, "cheap": None}), mentions, index, gold)
    for name, scores in {"overall": (tables["expensive"] + tables["cheap"]) / 2, **tables}.items():
        expected = rank_every_gold(scores, gold)
        if gold.shape[1]:
            assert ranking.gold_ranks[name].tolist() == expected
        assert ranking.ranks[name].tolist() == [min(filter(None, ranks), default=0) for ranks in expected]
    overall = (tables["expensive"] + tables["cheap"]) / 2
    assert ranking.top_entities.tolist() == top_by_sorting(overall, 3)


@pytest.mark.parametrize("prune", [True, False])
def test_ranks_of_a_real_matcher_equal_those_of_float64(prune):
    matcher, mentions, entities, golds = trained_like(2)
    generator = torch.Generator().manual_seed(0)
    gold = torch.cat([golds, torch.randint(0, 61, (13, 3), generator=generator)], dim=1)
    gold[3, 1:], gold[7] = -1, -1
    scores = reference_scores(matcher, mentions, entities)
    with torch.no_grad():
        index = MemoryIndex()
        add(index, matcher.entity(entities))
        ranking = Ranker(prune=prune, pairs_per_block=300)(matcher, matcher.mention(mentions), index, gold)
    for name, table in scores.items():
        assert ranking.gold_ranks[name].tolist() == rank_every_gold(table, gold), name
    assert ranking.top_entities.tolist() == top_by_sorting(scores["overall"], 10)


def test_a_non_finite_score_names_the_mention_and_not_the_row_of_its_gold():
    class Broken(TableUnit):
        def score(self, mentions, entities):
            scores = super().score(mentions, entities).clone()
            return scores.masked_fill(scores == 13, float("nan"))

    scores = torch.zeros(3, 20)
    scores[2, 13] = 13
    index, mentions = table_states({"text": scores})
    with pytest.raises(NonFiniteScoreError, match="mention 2 .* entity 13") as caught:
        Ranker(pairs_per_block=15)(Matcher(DIMS, {"text": Broken}), mentions, index, pad([[0, 4, 5], [1], [2, 3]]))
    assert (caught.value.mention, caught.value.entity) == (2, 13)
