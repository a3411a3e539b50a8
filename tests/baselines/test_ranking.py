"""Ranks and top entities against a sorted list of all entities."""

from __future__ import annotations

import numpy as np
import pytest

from mimic_pl.baselines import rank_all
from mimic_pl.errors import NonFiniteScoreError
from tests.reference import best_rank, ranking

ENTITIES = 13


@pytest.fixture(scope="module")
def table():
    """Scores with many ties, and golds: none, one or several."""
    rng = np.random.default_rng(5)
    scores = rng.integers(0, 4, (17, ENTITIES)).astype(np.float32)
    scores[3] = 1  # a constant scorer
    golds = [sorted(rng.choice(ENTITIES, rng.integers(0, 4), replace=False).tolist()) for _ in scores]
    golds[3], golds[4] = [7], []
    return scores, golds


@pytest.mark.parametrize("block_size", [1, 5, 17, None])
@pytest.mark.parametrize("top_k", [1, 4, 40])
def test_ranks_and_top_entities_are_those_of_the_sorted_list(table, block_size, top_k):
    scores, golds = table
    blocks = list(rank_all(lambda block: scores[block], golds, ENTITIES, top_k, block_size))
    assert len(blocks) == -(-len(scores) // (block_size or 17))
    ranks = [rank for block in blocks for rank in block.ranks["overall"].tolist()]
    assert ranks == [best_rank(row, own) for row, own in zip(scores, golds, strict=True)]
    assert ranks[3] == 8 and ranks[4] == 0  # a tie, ranked by position; no gold
    tops = [top for block in blocks for top in block.top_entities.tolist()]
    assert tops == [ranking(row)[:top_k] for row in scores]
    kept = [line for block in blocks for line in block.top_scores["overall"].tolist()]
    assert kept == [row[top].tolist() for row, top in zip(scores, tops, strict=True)]


def test_a_nan_score_is_an_error_that_names_mention_and_entity():
    scores = np.zeros((6, ENTITIES), np.float32)
    scores[4, 9] = np.nan
    with pytest.raises(NonFiniteScoreError, match="mention 4 .* entity 9 "):
        list(rank_all(lambda block: scores[block], [[0]] * 6, ENTITIES, 1, block_size=2))
