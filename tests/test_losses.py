"""The contrastive losses against their formula written out."""

import math

import pytest
import torch

from mimic_pl.errors import ConfigError
from mimic_pl.losses import UnitConsistentLoss


def literal_cross_entropy(scores, temperature=1.0, left_out=()):
    """-log softmax of the diagonal, row by row in plain Python."""
    terms = []
    for i, row in enumerate(scores.tolist()):
        exps = [math.exp(s / temperature) for j, s in enumerate(row) if (i, j) not in left_out]
        terms.append(-row[i] / temperature + math.log(sum(exps)))
    return sum(terms) / len(terms)


SCORES = {name: torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
GOLD = torch.tensor([7, 3, 7, 9])


def test_the_total_is_the_sum_of_the_terms():
    total, terms = UnitConsistentLoss()(SCORES, GOLD)
    assert {name: pytest.approx(literal_cross_entropy(s), rel=1e-5) for name, s in SCORES.items()} == {
        name: term.item() for name, term in terms.items()
    }
    assert total.item() == pytest.approx(sum(literal_cross_entropy(s) for s in SCORES.values()), rel=1e-5)


def test_weights_and_temperature():
    total, terms = UnitConsistentLoss(weights={"a": 2.0, "b": 0.0}, temperature=0.5)(SCORES, GOLD)
    assert set(terms) == {"a", "c"}
    expected = 2 * literal_cross_entropy(SCORES["a"], 0.5) + literal_cross_entropy(SCORES["c"], 0.5)
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_masked_false_negatives_leave_their_columns_out():
    _, terms = UnitConsistentLoss(mask_false_negatives=True)(SCORES, GOLD)
    expected = literal_cross_entropy(SCORES["a"], left_out={(0, 2), (2, 0)})
    assert terms["a"].item() == pytest.approx(expected, rel=1e-5)


def test_a_batch_of_one_has_nothing_to_contrast():
    total, _ = UnitConsistentLoss()({"overall": torch.tensor([[3.0]])}, torch.tensor([0]))
    assert total.item() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"temperature": 0.0}, "temperature"), ({"weights": {"a": -1.0}}, "negative")],
)
def test_impossible_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        UnitConsistentLoss(**arguments)


@pytest.mark.parametrize("weights", [{"d": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.0}])
def test_weights_that_name_no_score_or_leave_none_are_refused(weights):
    with pytest.raises(ConfigError):
        UnitConsistentLoss(weights=weights)(SCORES, GOLD)


def test_columns_of_any_gold_of_a_row_are_masked():
    golds = torch.tensor([[9, 7, -1], [3, -1, -1], [7, 3, -1], [9, -1, -1]])  # those of GOLD are drawn from them
    _, terms = UnitConsistentLoss(mask_false_negatives=True)(SCORES, GOLD, golds)
    # Column 2 holds row 0's own gold, column 3 its other one; and so on.
    left_out = {(0, 2), (0, 3), (2, 0), (2, 1)}
    assert terms["a"].item() == pytest.approx(literal_cross_entropy(SCORES["a"], left_out=left_out), rel=1e-5)


@pytest.mark.parametrize("mask", [True, False])
def test_single_golds_give_the_same_loss_with_and_without_the_list(mask):
    loss = UnitConsistentLoss(mask_false_negatives=mask)
    padded = torch.stack([GOLD, torch.full_like(GOLD, -1)], dim=1)
    assert torch.equal(loss(SCORES, GOLD)[0], loss(SCORES, GOLD, padded)[0])
