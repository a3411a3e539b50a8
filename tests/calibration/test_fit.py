"""Fitted temperatures and scores of NIL, against grid search, known parameters and invariances."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from mimic_pl.calibration import Calibration, ScoredLists, fit_calibration
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity, Mention
from tests.calibration.lists import random_lists


def negative_log_likelihood(temperature, nil_score, lists, top_k, nil_share):
    """The documented objective, one mention at a time in plain Python."""
    total = weight = 0.0
    for scores, is_gold, known in zip(*(part.tolist() for part in (*lists[:2], lists.known)), strict=True):
        others = [score for score, gold in zip(scores, is_gold, strict=True) if not gold][:top_k]
        cases = [(1 - nil_share, scores[:top_k], is_gold[:top_k])] if known else []
        for share, own, golds in [*cases, (nil_share, others, [False] * len(others))]:
            exponents = [math.exp((score - nil_score) / temperature) for score in own]
            wanted = sum(e for e, gold in zip(exponents, golds, strict=True) if gold) if any(golds) else 1.0
            total -= share * math.log(wanted / (1 + sum(exponents)))
            weight += share
    return total / weight


@pytest.mark.parametrize("nil_share", [0.5, 0.2])
def test_no_point_of_a_grid_is_more_likely(nil_share):
    lists = random_lists(60, width=6, seed=1, outside=0.2, nil=0.1)
    found = fit_calibration(lists, top_k=4, nil_share=nil_share)
    best = negative_log_likelihood(found.temperature, found.nil_score, lists, 4, nil_share)
    # A coarse grid of everything, and a fine one around the optimum.
    for factors, steps in ((np.geomspace(0.05, 20, 25), np.linspace(-6, 6, 25)), ((0.999, 1, 1.001), (-1e-3, 0, 1e-3))):
        for factor in factors:
            for step in steps:
                point = found.temperature * factor, found.nil_score + step
                assert negative_log_likelihood(*point, lists, 4, nil_share) >= best - 1e-12


def test_the_parameters_that_generated_the_data_are_recovered():
    """Answers drawn from P itself, with T = 2.5 and b = 4: a gold in the list, or none of those scored."""
    generator = torch.Generator().manual_seed(0)
    count, k, temperature, nil_score = 40_000, 5, 2.5, 4.0
    scores = (4 * torch.rand(count, k, generator=generator, dtype=torch.float64) + 2).sort(dim=1, descending=True)[0]
    logits = torch.cat([scores, torch.full((count, 1), nil_score)], dim=1) / temperature
    drawn = logits.softmax(dim=1).multinomial(1, generator=generator)[:, 0]
    is_gold = torch.nn.functional.one_hot(drawn, k + 1)[:, :k].bool()
    found = fit_generated(scores, is_gold)
    assert found.temperature == pytest.approx(temperature, rel=0.05)
    assert found.nil_score == pytest.approx(nil_score, abs=0.1)


def fit_generated(scores, is_gold):
    """Fit to lists in which NIL cases are mentions without a gold, rather than held-out golds.

    With golds that are only known to be below the list, the first term of the likelihood is that of the data; the
    second is switched off by a share of almost 0.
    """
    lists = ScoredLists(scores, is_gold, torch.ones(len(scores), dtype=torch.bool))
    return fit_calibration(lists.padded(scores.shape[1] + 1), top_k=scores.shape[1], nil_share=1e-9)


def test_mentions_may_come_in_any_order():
    lists = random_lists(50, width=6, seed=2, outside=0.1, nil=0.1)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0))
    first, second = fit_calibration(lists, top_k=4), fit_calibration(lists.rows(order), top_k=4)
    assert second.temperature == pytest.approx(first.temperature, rel=1e-7)
    assert second.nil_score == pytest.approx(first.nil_score, rel=1e-7)


@pytest.mark.parametrize(("factor", "shift"), [(1.0, 1e4), (1.0, -37.5), (1e6, 0.0), (1e-6, 0.0), (1e3, -1e5)])
def test_the_unit_of_the_scores_does_not_matter(factor, shift):
    """s -> f s + c turns T into f T and b into f b + c, and leaves every probability as it is."""
    lists = random_lists(80, width=6, seed=3, outside=0.1, nil=0.1)
    moved = lists._replace(scores=factor * lists.scores + shift)
    first, second = fit_calibration(lists, top_k=4), fit_calibration(moved, top_k=4)
    assert second.temperature == pytest.approx(factor * first.temperature, rel=1e-5)
    assert second.nil_score == pytest.approx(factor * first.nil_score + shift, rel=1e-5)
    for one, two in zip(first(lists.scores), second(moved.scores), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-8)


def test_scores_without_a_common_level_are_calibrated_relative_to_their_list():
    """Add any constant to each mention's scores: the absolute fit suffers, the relative one is the same."""
    lists = random_lists(200, width=6, seed=8)
    shifts = 50 * torch.randn(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    moved = lists._replace(scores=lists.scores + shifts)
    found = fit_calibration(moved, top_k=4)
    assert found.relative is not None
    level = lists.scores[:, :4].mean(dim=1, keepdim=True)
    for shift in (0.0, 123.0):
        for own in (lists.scores[:, :4], lists.scores):
            probabilities, nil = found(own + shift)
            logits = (lists.scores[:, :4] - level) / found.relative.temperature
            total = logits.exp().sum(dim=1) + math.exp(found.relative.nil_score / found.relative.temperature)
            torch.testing.assert_close(probabilities[:, :4], logits.exp() / total[:, None], rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(nil, 1 - probabilities.sum(dim=1))
    # It is what the absolute objective gives for scores relative to their list, with and without the golds.
    removed = moved.without_golds(4)
    cases = ScoredLists.joined([moved.first(4), removed])
    cases = cases._replace(scores=cases.scores - cases.scores.mean(dim=1, keepdim=True))
    best = objective(*found.relative, cases)
    for factor in (0.9, 0.999, 1.001, 1.1):
        assert objective(found.relative.temperature * factor, found.relative.nil_score, cases) > best
        assert objective(found.relative.temperature, found.relative.nil_score * factor, cases) > best
    assert objective(found.temperature, found.nil_score, ScoredLists.joined([moved.first(4), removed])) > best


def objective(temperature, nil_score, cases):
    probabilities, nil = Calibration(temperature, nil_score, cases.scores.shape[1])(cases.scores)
    right = torch.where(cases.is_gold.any(dim=1), (probabilities * cases.is_gold).sum(dim=1), nil)
    return -float(right.log().mean())


def test_shorter_lists_have_no_level():
    calibration = Calibration(2.0, 1.0, top_k=3, relative=(0.5, 0.25))
    scores = torch.tensor([[3.0, 2.0, -torch.inf, -torch.inf], [9.0, 8.0, 7.0, 6.0]])
    absolute, relative = Calibration(2.0, 1.0, top_k=3), Calibration(0.5, 8.25, top_k=3)
    for found, short, full in zip(calibration(scores), absolute(scores), relative(scores), strict=True):
        torch.testing.assert_close(found, torch.stack([short[0], full[1]]))
    torch.testing.assert_close(calibration(scores[:1, :2]), absolute(scores[:1, :2]))


def test_scores_with_a_common_level_keep_it():
    """A score above 0 is right, whatever the rest of the list."""
    generator = torch.Generator().manual_seed(0)
    others = -4 * torch.rand(300, 4, generator=generator, dtype=torch.float64)
    scores = torch.cat([1 + torch.rand(300, 1, generator=generator, dtype=torch.float64), others], dim=1)
    scores = scores.sort(dim=1, descending=True)[0]
    assert fit_calibration(ScoredLists(scores, scores > 0), top_k=4).relative is None


def test_a_larger_share_of_nil_makes_it_more_probable():
    lists = random_lists(80, width=6, seed=4)
    shares = [fit_calibration(lists, top_k=4, nil_share=share)(lists.scores)[1].mean() for share in (0.1, 0.5, 0.9)]
    assert shares == sorted(shares)


def test_perfectly_separated_scores_give_finite_parameters():
    """Every gold has 5 and every other entity 1, so that T tends to 0 and b lies in between."""
    scores = torch.tensor([[5.0, 1.0, 1.0]]).repeat(20, 1)
    lists = ScoredLists(scores, scores == 5)
    found = fit_calibration(lists, top_k=2)
    assert 0 < found.temperature < 0.5 and 1 < found.nil_score < 5
    (first, _), nil = found(scores[:1, :2])[0][0].tolist(), found(torch.tensor([[1.0, 1.0]]))[1]
    assert first > 0.999 and nil > 0.999


def test_scores_without_information_give_equal_probabilities():
    scores = torch.zeros(30, 5)
    lists = ScoredLists(scores, torch.nn.functional.one_hot(torch.arange(30) % 4, 5).bool())
    probabilities, nil = fit_calibration(lists, top_k=4)(scores)
    # Half of all cases are NIL, and the others spread over four entities.
    torch.testing.assert_close(nil, torch.full((30,), 0.5, dtype=torch.float64), atol=1e-6, rtol=0)
    torch.testing.assert_close(probabilities[:, :4], torch.full((30, 4), 0.125, dtype=torch.float64), atol=1e-6, rtol=0)


def test_links_of_a_linker_are_lists():
    names = [["a", "b", "c"], ["b", "a"], []]
    links = [
        Links(
            Mention(f"m{row}", "m", "m", ("b",) if row < 2 else ()),
            tuple(Link(Entity(id, id), float(3 - place)) for place, id in enumerate(own)),
            number=row,
        )
        for row, own in enumerate(names)
    ]
    lists = ScoredLists.of_links(links)
    assert lists.scores.tolist() == [[3, 2, 1], [3, 2, -math.inf], [-math.inf] * 3]
    assert lists.is_gold.tolist() == [[False, True, False], [True, False, False], [False] * 3]
    assert lists.known.tolist() == [True, True, False]
    assert isinstance(fit_calibration(lists, top_k=2), Calibration)
    failed = Links(None, error=DataError("no such field"), number=7)
    with pytest.raises(DataError, match="Record 7 could not be linked: no such field"):
        ScoredLists.of_links([*links, failed])


def test_what_cannot_be_fitted_is_refused():
    lists = random_lists(20, width=5, seed=5)
    with pytest.raises(ConfigError, match="are too short: without its golds, a mention has 1 less than the 5"):
        fit_calibration(lists, top_k=5)
    for share in (0, 1, -0.1, True):
        with pytest.raises(ConfigError, match="it must be a number above 0 and below 1"):
            fit_calibration(lists, top_k=4, nil_share=share)
    with pytest.raises(DataError, match="No mention has its gold among its first 4 entities"):
        fit_calibration(ScoredLists(lists.scores, torch.zeros_like(lists.is_gold)), top_k=4)
