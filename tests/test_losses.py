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
