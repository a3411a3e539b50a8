"""Exact ranks and top-k against sorting the full score matrix."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.errors import DeviceMemoryError, NonFiniteScoreError
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.top import first_of_each_hash
from mimic_pl.units import TGLU, VDLU, Matcher, published_units
from tests import reference
from tests.ranking.tables import TableUnit, add, pad, table_matcher, table_states

DIMS = FeatureDims(16, 96)


def top_by_sorting(scores, k):
    return [reference.ranking(row)[:k] for row in scores.tolist()]


@settings(max_examples=200)
@given(st.data())
def test_ranks_and_top_k_equal_one_sorted_list(data):
    """Few distinct scores, hence many ties; loose bounds; no, one or several golds; any block size."""
    num_mentions, num_entities = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 40))
    values = st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), min_size=num_entities, max_size=num_entities)
    tables = {name: torch.tensor([data.draw(values) for _ in range(num_mentions)]) for name in ("expensive", "cheap")}
    gold = st.lists(st.integers(0, num_entities - 1), max_size=3, unique=True)
    golds = [data.draw(gold) for _ in range(num_mentions)]
    top_k = data.draw(st.integers(1, 12))
    ranker = Ranker(
        top_k,
        unit_ranks=data.draw(st.sampled_from(["all", "cheap"])),
        prune=data.draw(st.booleans()),
        pairs_per_block=data.draw(st.integers(1, 250)),
    )
    matcher = table_matcher({"expensive": data.draw(st.sampled_from([0.0, 0.3, 3.0])), "cheap": None})
    index, mentions = table_states(tables)
    ranking = ranker(matcher, mentions, index, pad(golds))

    scores = {"overall": (tables["expensive"] + tables["cheap"]) / 2, **tables}
    assert set(ranking.ranks) == set(scores) - ({"expensive"} if ranker.unit_ranks == "cheap" else set())
    for name, ranks in ranking.ranks.items():
        assert ranks.tolist() == reference.ranks_by_sorting(scores[name], golds), name
    order = top_by_sorting(scores["overall"], top_k)
    assert ranking.top_entities.tolist() == order
    for name, table in scores.items():
        torch.testing.assert_close(ranking.top_scores[name], table.gather(1, torch.tensor(order)))


def test_differences_below_float32_precision_are_ordered_by_position():
    """Rounding in float32 depends on the block; the order has to be that of float64 scores, rounded once."""
    torch.manual_seed(0)
    vectors = torch.randn(3, 64)
    repeated = vectors[torch.randint(0, 3, (400,))] * 100
    matcher = Matcher(DIMS, {"vision": lambda dims: VDLU(dims, 64)})
    index = MemoryIndex()
    state = {"query": repeated, "key": repeated, "pooled": repeated}
    add(index, {"vision": state})
    mentions = {"vision": {name: torch.randn(5, 64) for name in state}}
    golds = torch.tensor([[17], [30], [211], [399], [0]])
    state_hashes = (repeated[None] == repeated[golds[:, 0]][:, None]).all(dim=-1)
    same_before = torch.stack([state_hashes[m, : golds[m, 0]].sum() for m in range(5)])
    for pairs_per_block in (5, 100, 1000, 10_000):
        ranks = Ranker(pairs_per_block=pairs_per_block)(matcher, mentions, index, golds).ranks["vision"]
        # Before the gold are complete groups of equal entities, and those of its own group at smaller positions.
        sizes = {int(state_hashes[m].sum()) for m in range(5)}
        groups = [int(r) - 1 - int(s) for r, s in zip(ranks, same_before, strict=True)]
        counts = [int((repeated == v * 100).all(dim=-1).sum()) for v in vectors]
        sums = {sum(c for i, c in enumerate(counts) if mask >> i & 1) for mask in range(8)}
        assert sizes <= set(counts)
        assert set(groups) <= sums


def test_a_constant_scorer_gains_nothing():
    index, mentions = table_states({"text": torch.zeros(100, 50)})
    golds = torch.randint(0, 50, (100, 1), generator=torch.Generator().manual_seed(0))
    for slack in (None, 1.0):
        ranking = Ranker(pairs_per_block=700)(table_matcher({"text": slack}), mentions, index, golds)
        assert ranking.ranks["overall"].tolist() == (golds[:, 0] + 1).tolist()
        assert ranking.top_entities.tolist() == [list(range(10))] * 100


@settings(max_examples=80)
@given(st.data())
def test_the_first_of_each_hash_are_found(data):
    pairs = data.draw(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([-5, 0, 2**62])), max_size=40))
    order = data.draw(st.permutations(range(len(pairs))))
    k = data.draw(st.integers(1, 3))
    expected = [
        sum(other == pair and there < here for other, there in zip(pairs, order, strict=True)) < k
        for pair, here in zip(pairs, order, strict=True)
    ]
    rows, state_hashes = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).unbind(dim=1)
    found = first_of_each_hash(rows, state_hashes, torch.tensor(order, dtype=torch.int64), k)
    assert found.tolist() == expected


@pytest.mark.parametrize("prune", [True, False])
def test_entities_with_equal_states_are_ranked_in_order_and_scored_once(prune, monkeypatch):
    """A knowledge base without images, ranked by images alone: four distinct states, otherwise ties."""
    scored = []
    exact = ExactScores.__call__
    monkeypatch.setattr(
        ExactScores, "__call__", lambda self, rows, *rest: scored.append(len(rows)) or exact(self, rows, *rest)
    )
    state_hashes = torch.randint(0, 4, (2000,), generator=torch.Generator().manual_seed(0))
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))[:, state_hashes]
    index, mentions = table_states({"vision": scores})
    golds = [[0], [1], [1999], [700], [701], [702]]
    ranking = Ranker(prune=prune, pairs_per_block=6000)(table_matcher({"vision": None}), mentions, index, pad(golds))
    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(scores, golds)
    assert ranking.top_entities.tolist() == top_by_sorting(scores, 10)
    assert sum(scored) < 6 * 4 * 10 * 3


def trained_like(seed, mask_padding=False):
    """A matcher with perturbed weights, and mentions whose features resemble those of their golds."""
    torch.manual_seed(seed)
    units = {**published_units(), "text": lambda dims: TGLU(dims, 24, mask_padding)}
    matcher = Matcher(DIMS, units).eval()
    with torch.no_grad():
        for parameter in matcher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    entities = reference.random_features(61, DIMS, tokens=6)
    golds = torch.randint(0, 61, (13, 1))
    alike = entities.rows(golds[:, 0])
    mentions = alike.map(lambda f: f + torch.randn_like(f) if f.is_floating_point() else f)
    return matcher, mentions, entities, golds


def rank_in_batches(ranker, matcher, mentions, entities, golds, batch=4, dtype="float32", storage=None):
    """Entities added to the index in batches of ten, in any order; mentions ranked in batches."""
    storage = torch.arange(len(entities.text_global)) if storage is None else storage
    with torch.no_grad():
        index = MemoryIndex(dtype=dtype)
        for order in storage.split(10):
            add(index, matcher.entity(entities.rows(order)), order)
        parts = [
            ranker(matcher, matcher.mention(mentions.rows(slice(s, s + batch))), index, golds[s : s + batch])
            for s in range(0, len(golds), batch)
        ]
    ranks = {name: [r for part in parts for r in part.ranks[name].tolist()] for name in parts[0].ranks}
    return ranks, torch.cat([part.top_entities for part in parts])


@pytest.mark.parametrize("mask_padding", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_blocks_batches_pruning_and_order_change_no_rank_of_a_real_matcher(seed, mask_padding):
    matcher, mentions, entities, golds = trained_like(seed, mask_padding)
    scores = reference_scores(matcher, mentions, entities)
    expected = {name: reference.ranks_by_sorting(table, golds.tolist()) for name, table in scores.items()}
    top = top_by_sorting(scores["overall"], 10)
    for prune in (True, False):
        for pairs_per_block, storage in ((5, None), (64, torch.randperm(61)), (10_000, None)):
            ranker = Ranker(prune=prune, pairs_per_block=pairs_per_block)
            ranks, found = rank_in_batches(ranker, matcher, mentions, entities, golds, storage=storage)
            assert ranks == expected
            assert found.tolist() == top


def reference_scores(matcher, mentions, entities):
    """Scores by the literal formulas in float64, one pair at a time, rounded to float32."""
    with torch.no_grad():
        normed = [matcher.norm(side) for side in (mentions, entities)]
        literal = {"text": reference.tglu, "vision": reference.vdlu, "cross_modal": reference.cmfu}
        matcher = matcher.double()
        doubled = [side.map(lambda f: f.double() if f.is_floating_point() else f) for side in normed]
        units = {
            name: reference.pairwise(*doubled, lambda m, e, name=name: literal[name](matcher.units[name], m, e))
            for name in literal
        }
        matcher.float()
    return {
        "overall": torch.stack(list(units.values())).mean(dim=0).float(),
        **{n: u.float() for n, u in units.items()},
    }


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "int4"])
def test_quantized_indexes_rank_their_stored_states_exactly(dtype):
    """With or without pruning and for any block size the same ranks, which are close to those of float32."""
    matcher, mentions, entities, golds = trained_like(5)
    results = [
        rank_in_batches(Ranker(prune=prune, pairs_per_block=pairs), matcher, mentions, entities, golds, dtype=dtype)
        for prune in (True, False)
        for pairs in (13, 1000)
    ]
    for ranks, top in results[1:]:
        assert ranks == results[0][0]
        assert torch.equal(top, results[0][1])
    full, _ = rank_in_batches(Ranker(), matcher, mentions, entities, golds)
    differences = [abs(a - b) for a, b in zip(full["overall"], results[0][0]["overall"], strict=True)]
    assert max(differences) <= 1


def test_reduced_precision_settings_of_training_change_no_rank():
    matcher, mentions, entities, golds = trained_like(3)
    expected, _ = rank_in_batches(Ranker(), matcher, mentions, entities, golds)
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            states = matcher.mention(mentions), matcher.entity(entities)
        states = tuple({u: {n: t.float() for n, t in s.items()} for u, s in side.items()} for side in states)
        index = MemoryIndex()
        add(index, {u: {n: t.detach() for n, t in s.items()} for u, s in states[1].items()})
        plain = Ranker()(matcher, states[0], index, golds)
        with torch.autocast("cpu", torch.bfloat16):
            ranking = Ranker()(matcher, states[0], index, golds)
        assert torch.get_float32_matmul_precision() == "medium", "the setting is restored"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert all(torch.equal(ranking.ranks[name], plain.ranks[name]) for name in expected)
    assert all(torch.equal(ranking.top_scores[name], plain.top_scores[name]) for name in expected)


def test_a_matcher_that_is_not_monotone_is_not_pruned():
    class Opposed(Matcher):
        def combine(self, scores):
            return -scores["text"]

    scores = torch.randn(4, 30, generator=torch.Generator().manual_seed(0))
    index, mentions = table_states({"text": scores})
    golds = [[3], [4], [5], [29]]
    ranking = Ranker(pairs_per_block=20)(table_matcher({"text": 5.0}, Opposed), mentions, index, pad(golds))
    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(-scores, golds)
    assert ranking.ranks["text"].tolist() == reference.ranks_by_sorting(scores, golds)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_non_finite_score_is_an_error_that_names_mention_and_entity(value):
    class Broken(TableUnit):
        def score(self, mentions, entities):
            scores = super().score(mentions, entities).clone()
            return scores.masked_fill(scores == 13, value)

    scores = torch.zeros(3, 20)
    scores[2, 13] = 13
    index, mentions = table_states({"text": scores})
    with pytest.raises(NonFiniteScoreError, match="mention 2 .* entity 13") as caught:
        Ranker(pairs_per_block=15)(Matcher(DIMS, {"text": Broken}), mentions, index, torch.tensor([[0], [1], [2]]))
    assert (caught.value.mention, caught.value.entity) == (2, 13)


def test_a_non_finite_entity_is_an_error_even_if_no_pair_is_scored():
    scores = torch.zeros(3, 20)
    scores[2, 13] = float("nan")
    index, mentions = table_states({"text": scores})
    for golds in ([[0], [1], [2]], [[], [], []]):
        with pytest.raises(NonFiniteScoreError, match="entity 13") as caught:
            Ranker(pairs_per_block=15)(table_matcher({"text": 1.0}), mentions, index, pad(golds))
        assert caught.value.entity == 13


class MemoryLimited(TableUnit):
    """Runs out of memory beyond a number of pairs."""

    max_pairs = 1

    def score(self, mentions, entities):
        if len(mentions["row"]) * len(entities["column"]) > self.max_pairs:
            raise torch.OutOfMemoryError("out of memory")
        return super().score(mentions, entities)


def test_out_of_memory_shrinks_the_blocks_once_and_then_is_an_error():
    scores = torch.randn(4, 64, generator=torch.Generator().manual_seed(3))
    index, mentions = table_states({"text": scores})
    golds = [[3], [4], [5], [63]]
    matcher = Matcher(DIMS, {"text": MemoryLimited})
    matcher.units["text"].max_pairs = 40
    ranking = Ranker(pairs_per_block=160)(matcher, mentions, index, pad(golds))
    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(scores, golds)
    matcher.units["text"].max_pairs = 3
    with pytest.raises(DeviceMemoryError, match="eval_batch_size"):
        Ranker(pairs_per_block=160)(matcher, mentions, index, pad(golds))


def test_golds_change_no_top_entity_and_may_be_left_out():
    index, mentions = table_states({"one": torch.randn(4, 30)})
    matcher = table_matcher({"one": 0.3})
    ranking, without = (
        Ranker()(matcher, mentions, index, pad([[3], [], [1, 2], [9]])),
        Ranker()(matcher, mentions, index),
    )
    assert torch.equal(ranking.top_entities, without.top_entities)
    assert without.ranks["overall"].tolist() == [0, 0, 0, 0]


@pytest.mark.parametrize("gold", [torch.empty(4, 0), torch.zeros(4, dtype=torch.int64), torch.full((3, 1), -1)])
def test_golds_of_another_type_or_shape_are_rejected(gold):
    index, mentions = table_states({"one": torch.randn(4, 30)})
    with pytest.raises(ValueError, match=r"must be int64 \[4, golds\]"):
        Ranker()(table_matcher({"one": None}), mentions, index, gold)
