"""Answers, calibration error, NIL metrics and risk-coverage, against counting and against other libraries."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from mimic_pl.calibration import Calibration, ScoredLists, answer_metrics, answers_of, reliability, risk_coverage
from mimic_pl.features import FeatureDims
from mimic_pl.ranking import MemoryIndex, Ranker
from mimic_pl.units import Matcher, published_units
from tests.calibration.lists import random_lists
from tests.reference import random_features

CALIBRATION = Calibration(temperature=0.7, nil_score=1.3, top_k=4)


def test_probabilities_are_those_of_the_formula():
    scores = torch.tensor([[3.0, 1.0, 0.5, -2.0, -2.5], [0.0, -torch.inf, -torch.inf, -torch.inf, -torch.inf]])
    probabilities, nil = CALIBRATION(scores)
    for row, own in enumerate(([3.0, 1.0, 0.5, -2.0], [0.0])):
        exponents = np.exp(np.array(own) / 0.7)
        total = np.exp(1.3 / 0.7) + exponents.sum()
        expected = [*(exponents / total), *[0.0] * (5 - len(own))]  # the fifth is beyond top_k
        np.testing.assert_allclose(probabilities[row], expected)
        np.testing.assert_allclose(nil[row], np.exp(1.3 / 0.7) / total)
    shorter, same = CALIBRATION(scores[:, :4])
    assert torch.equal(shorter, probabilities[:, :4]) and torch.equal(same, nil)
    assert CALIBRATION(torch.empty(2, 0))[1].tolist() == [1.0, 1.0]


def test_large_scores_do_not_overflow():
    probabilities, nil = Calibration(1e-3, 1e6)(torch.tensor([[1e6 + 1, 1e6 - 1]], dtype=torch.float64))
    assert probabilities.tolist() == [[1.0, 0.0]] and nil.tolist() == [0.0]


@pytest.mark.parametrize("bins", [5, 10, 15])
def test_calibration_error_equals_counting_and_torchmetrics(bins):
    generator = np.random.default_rng(0)
    confidence, correct = generator.uniform(0, 1, 500), generator.uniform(0, 1, 500) < 0.6
    found = reliability(torch.from_numpy(confidence), torch.from_numpy(correct), bins)
    error, shares = 0.0, []
    for low in range(bins):
        inside = (confidence >= low / bins) & (confidence < (low + 1) / bins)
        shares.append(inside.mean())
        if inside.any():
            error += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    assert found.error == pytest.approx(error, abs=1e-9)
    np.testing.assert_allclose(found.share, shares)
    gaps = found.share * (found.accuracy - found.confidence).abs()
    assert found.error == pytest.approx(float(gaps.nansum()), abs=1e-9)  # the plot shows what the number says
    metric = BinaryCalibrationError(n_bins=bins)
    metric.update(torch.from_numpy(confidence), torch.from_numpy(correct).long())
    assert found.error == pytest.approx(float(metric.compute()), abs=1e-6)


def test_confidences_of_one_are_in_the_last_bin():
    found = reliability(torch.tensor([1.0, 1.0, 0.95, 0.0]), torch.tensor([True, False, True, False]))
    assert found.share.tolist() == [0.25, 0, 0, 0, 0, 0, 0, 0, 0, 0.75]
    assert found.error == pytest.approx(0.75 * abs(2 / 3 - 2.95 / 3), abs=1e-6)


def test_risk_and_coverage_equal_counting():
    generator = np.random.default_rng(1)
    confidence = generator.integers(0, 20, 200) / 20  # with many ties
    correct = generator.uniform(0, 1, 200) < confidence
    found = risk_coverage(torch.from_numpy(confidence), torch.from_numpy(correct))
    risks = {c: 1 - correct[confidence >= c].mean() for c in confidence}
    assert found.area == pytest.approx(np.mean([risks[c] for c in confidence]))
    for threshold, coverage, risk in zip(*(part.tolist() for part in found[:3]), strict=True):
        assert coverage == pytest.approx((confidence >= threshold).mean()) and risk == pytest.approx(risks[threshold])
    assert found.coverage[-1] == 1 and found.risk[-1] == pytest.approx(1 - correct.mean())
    order = generator.permutation(200)
    again = risk_coverage(torch.from_numpy(confidence[order]), torch.from_numpy(correct[order]))
    assert again.area == pytest.approx(found.area, abs=1e-12)


def test_nil_metrics_equal_counting():
    lists = random_lists(300, width=8, seed=6, outside=0.1, nil=0.15)
    cases = lists.held_out(4)
    found = answer_metrics(answers_of(cases, CALIBRATION, 4))
    nil = [row[0] < CALIBRATION.nil_score for row in cases.scores.tolist()]  # independent of the temperature
    truth = [not known for known in cases.known.tolist()]
    both = sum(a and t for a, t in zip(nil, truth, strict=True))
    assert found["mentions"] == len(truth) == 300 + int(lists.known.sum())
    assert found["nil_mentions"] == sum(truth)
    assert found["nil_precision"] == pytest.approx(both / sum(nil))
    assert found["nil_recall"] == pytest.approx(both / sum(truth))
    assert found["nil_f1"] == pytest.approx(2 * both / (sum(nil) + sum(truth)))
    right = [t if a else gold for a, t, gold in zip(nil, truth, cases.is_gold[:, 0].tolist(), strict=True)]
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))


def test_without_calibration_the_confidence_is_the_softmax_and_nil_is_never_answered():
    lists = random_lists(50, width=6, seed=7, nil=0.2)
    answers = answers_of(lists, None, 3)
    expected = [np.exp(row[0]) / np.exp(row[:3]).sum() for row in lists.scores.tolist()]
    np.testing.assert_allclose(answers.confidence, expected)
    assert not answers.answered_nil.any() and torch.equal(answers.correct, lists.is_gold[:, 0])
    assert answer_metrics(answers)["nil_f1"] == 0
    only_known = lists.rows(lists.known)
    assert "nil_f1" not in answer_metrics(answers_of(only_known, None, 3))


@torch.no_grad()
def test_a_list_without_its_golds_is_that_of_a_knowledge_base_without_them():
    """Rank among all entities, remove the golds from the list; or build an index that never had them."""
    dims = FeatureDims(16, 96)
    torch.manual_seed(0)
    matcher = Matcher(dims, published_units()).eval()
    mentions, entities = matcher.mention(random_features(7, dims)), matcher.entity(random_features(25, dims))
    golds = torch.tensor([[0, -1], [3, 9], [9, -1], [24, 1], [7, -1], [-1, -1], [2, 3]])
    index = MemoryIndex()
    index.add([f"Q{n}" for n in range(25)], entities)
    ranking = Ranker(top_k=6 + 2)(matcher, mentions, index, golds)
    removed = ScoredLists.of_ranking(ranking, golds, 25).without_golds(6)
    for row in range(7):
        kept = [n for n in range(25) if n not in golds[row].tolist()]
        without = MemoryIndex()
        states = {unit: {name: tensor[kept] for name, tensor in own.items()} for unit, own in entities.items()}
        without.add([f"Q{n}" for n in kept], states, torch.tensor(kept))
        own = {unit: {name: t[row : row + 1] for name, t in state.items()} for unit, state in mentions.items()}
        expected = Ranker(top_k=6)(matcher, own, without).top_scores["overall"][0]
        torch.testing.assert_close(removed.scores[row].float(), expected, rtol=0, atol=1e-5)


def test_small_knowledge_bases_have_shorter_lists():
    lists = ScoredLists(torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[True, False, False]])).padded(11)
    removed = lists.without_golds(10)
    assert removed.scores[0, :2].tolist() == [2.0, 1.0] and removed.scores[0, 2:].isneginf().all()
    assert not removed.known.any()
