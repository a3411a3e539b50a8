"""Reranking of the top entities, against a loop over the candidate list of each mention."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import ConfigError, NonFiniteScoreError
from mimic_pl.ranking import Ranker
from mimic_pl.units import Matcher
from tests import reference
from tests.ranking.tables import pad, table_matcher, table_states


class MiddleFirst(Matcher):
    """Prefers entities whose scores are close to the mean of their list; reads states and scores."""

    def rerank(self, mentions, entities, scores):
        rows = mentions["one"]["row"][:, None, None].expand(-1, scores["one"].shape[1], 1)
        own = entities["one"]["column"].gather(2, rows)[:, :, 0]
        assert torch.equal(own, scores["one"]), "states and scores are of the same entities, in the same order"
        return -(own - own.mean(dim=1, keepdim=True)).abs()


def reordered(row, top_k):
    """All entities of one mention, best first, with the first few of them reranked."""
    order = reference.ranking(row)
    top, rest = order[:top_k], order[top_k:]
    mean = float(torch.tensor([row[e] for e in top]).mean())
    return sorted(top, key=lambda e: (abs(row[e] - mean), order.index(e))) + rest


# Few binary digits and list lengths that are powers of two: means are exact, so that ties stay ties.
@settings(max_examples=100)
@given(st.data())
def test_golds_in_the_candidate_list_get_new_ranks_and_others_keep_theirs(data):
    num_mentions, num_entities = data.draw(st.integers(1, 5)), data.draw(st.integers(8, 30))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_entities, max_size=num_entities)
    table = torch.tensor([data.draw(values) for _ in range(num_mentions)])
    gold = st.lists(st.integers(0, num_entities - 1), max_size=4, unique=True)
    golds = [data.draw(gold) for _ in range(num_mentions)]
    top_k, slack = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.sampled_from([None, 0.3]))
    index, mentions = table_states({"one": table})
    ranker = Ranker(top_k, pairs_per_block=data.draw(st.integers(1, 200)))
    ranking = ranker(table_matcher({"one": slack}, MiddleFirst), mentions, index, pad(golds))
    plain = ranker(table_matcher({"one": slack}), mentions, index, pad(golds))

    expected = [reordered(row, top_k) for row in table.tolist()]
    assert ranking.top_entities.tolist() == [order[:top_k] for order in expected]
    ranks = [[order.index(g) + 1 for g in own] for order, own in zip(expected, golds, strict=True)]
    assert [[r for r in row if r] for row in ranking.gold_ranks["overall"].tolist()] == ranks
    assert ranking.ranks["overall"].tolist() == [min(own, default=0) for own in ranks]
    assert torch.equal(ranking.ranks["one"], plain.ranks["one"]), "the ranks of single units are not reranked"
    assert torch.equal(ranking.top_scores["one"], table.gather(1, ranking.top_entities))
    assert ranking.top_scores["overall"].diff(dim=1).le(0).all(), "the new scores, in descending order"


def test_the_candidate_list_is_at_most_as_long_as_the_knowledge_base():
    table = torch.tensor([[3.0, 1.0, 2.0, 0.0]])
    index, mentions = table_states({"one": table})
    ranking = Ranker(10)(table_matcher({"one": None}, MiddleFirst), mentions, index, torch.tensor([[0]]))
    assert ranking.top_entities.tolist() == [reordered(table[0].tolist(), 4)]


def test_a_matcher_that_does_not_rerank_reads_no_states_of_top_entities(monkeypatch):
    index, mentions = table_states({"one": torch.zeros(2, 20)})
    monkeypatch.setattr(index, "gather", lambda _: pytest.fail("unused states are gathered"))
    Ranker(3)(table_matcher({"one": None}), mentions, index, torch.tensor([[0], [1]]))


def test_invalid_reranked_scores_are_rejected():
    class Broken(Matcher):
        def rerank(self, mentions, entities, scores):
            return scores["overall"].masked_fill(scores["overall"] == 13, float("nan"))

    class Short(Matcher):
        def rerank(self, mentions, entities, scores):
            return scores["overall"][:, 0]

    table = torch.zeros(3, 20)
    table[2, 17] = 13
    index, mentions = table_states({"one": table})
    golds = torch.zeros(3, 1, dtype=torch.int64)
    with pytest.raises(NonFiniteScoreError, match="mention 2 .* entity 17") as caught:
        Ranker()(table_matcher({"one": None}, Broken), mentions, index, golds)
    assert (caught.value.mention, caught.value.entity) == (2, 17)
    with pytest.raises(ConfigError, match=r"Short.rerank returns \[3\] for 3 mentions with 10 entities each"):
        Ranker()(table_matcher({"one": None}, Short), mentions, index, golds)
