"""The contract of a reranker: order, ties, what is kept, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mimic_pl.errors import ConfigError, DataError, NonFiniteScoreError
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval import Reranker, rerank

MENTION = Mention.of({"id": "m7", "mention": "Jordan", "sentence": "Jordan scored."})


def links(*scores: float) -> Links:
    candidates = tuple(
        Link(Entity(f"Q{i}", f"name {i}"), score, 0.5, {"text": score}) for i, score in enumerate(scores)
    )
    return Links(MENTION, candidates, 0.1, number=3)


def order(found: Links) -> list[str]:
    return [link.entity.id for link in found]


def test_the_new_scores_order_and_the_first_ones_are_kept():
    before = links(3.0, 2.0, 1.0)
    after = rerank(lambda mention, candidates: [0.1, 0.3, 0.2], before)
    assert order(after) == ["Q1", "Q2", "Q0"]
    assert [link.score for link in after] == [0.3, 0.2, 0.1]
    assert [link.units for link in after] == [{"text": s, "first_stage": s} for s in (2.0, 1.0, 3.0)]
    assert after.mention is MENTION and after.number == 3
    assert order(before) == ["Q0", "Q1", "Q2"] and before[0].units == {"text": 3.0}, "the links given are unchanged"


def test_probabilities_of_the_first_scores_are_removed():
    after = rerank(lambda mention, candidates: [1.0, 2.0], links(2.0, 1.0))
    assert after.nil_probability is None and all(link.probability is None for link in after)


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12))
def test_the_order_is_that_of_a_brute_force_sort(scores):
    after = rerank(lambda mention, candidates: scores, links(*range(len(scores), 0, -1)))
    pairs = [(-score, position) for position, score in enumerate(scores)]
    assert order(after) == [f"Q{position}" for _, position in sorted(pairs)], "ties keep the first stage's order"


def test_the_reranker_sees_the_mention_and_its_candidates_best_first():
    seen = []

    def reranker(mention, candidates):
        seen.append((mention, [link.score for link in candidates]))
        return [link.score for link in candidates]

    rerank(reranker, links(5.0, 4.0))
    assert seen == [(MENTION, [5.0, 4.0])]


@pytest.mark.parametrize("scores", [torch.tensor([1.0, 2.0]), np.array([1.0, 2.0], np.float32), (1, 2)])
def test_scores_may_be_a_tensor_an_array_or_integers(scores):
    after = rerank(lambda mention, candidates: scores, links(2.0, 1.0))
    assert [(link.entity.id, link.score) for link in after] == [("Q1", 2.0), ("Q0", 1.0)]
    assert all(type(link.score) is float for link in after)


def test_nothing_to_rerank():
    def never(mention, candidates):
        raise AssertionError("called without candidates")

    empty, failed = Links(MENTION), Links(None, error=DataError("bad record"))
    assert rerank(never, empty) is empty and rerank(never, failed) is failed


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ([1.0], r"returned 1 scores for the mention 'Jordan' \(id 'm7'\), which has 2 candidates"),
        (3.0, r"returned 3.0 for the mention 'Jordan' \(id 'm7'\). Return a list of numbers"),
        (["a", "b"], r"returned \['a', 'b'\] for the mention 'Jordan'"),
        (None, r"returned None for the mention 'Jordan'"),
    ],
)
def test_other_results_are_refused(scores, message):
    with pytest.raises(ConfigError, match=message):
        rerank(lambda mention, candidates: scores, links(2.0, 1.0))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_scores_that_cannot_be_ranked_are_refused(value):
    with pytest.raises(
        NonFiniteScoreError, match=rf"returned {value} for the mention 'Jordan' .* the entity 'Q1'"
    ) as e:
        rerank(lambda mention, candidates: [1.0, value], links(2.0, 1.0))
    assert e.value.entity == 1 and e.value.score == "reranker"


def test_an_exception_of_the_reranker_names_it_and_the_mention():
    def by_language_model(mention, candidates):
        return [{}["answer"]]

    with pytest.raises(
        ConfigError, match=r"by_language_model failed for the mention 'Jordan' .*KeyError: 'answer'"
    ) as e:
        rerank(by_language_model, links(1.0))
    assert isinstance(e.value.__cause__, KeyError)


def test_functions_are_rerankers():
    assert isinstance(lambda mention, candidates: [], Reranker)
