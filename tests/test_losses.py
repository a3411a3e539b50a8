"""The contrastive losses against literal implementations of their formulas."""

import math

import pytest
import torch

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses import AssignmentLoss, IntraModalLoss, SymmetricLoss, UnitConsistentLoss, same_gold
from tests.reference import random_features


def literal_cross_entropy(scores, temperature=1.0, left_out=()):
    """-log softmax of the diagonal, row by row in plain Python."""
    terms = []
    for i, row in enumerate(scores.tolist()):
        exps = [math.exp(s / temperature) for j, s in enumerate(row) if (i, j) not in left_out]
        terms.append(-row[i] / temperature + math.log(sum(exps)))
    return sum(terms) / len(terms)


SCORES = {name: torch.randn(4, 4, generator=torch.Generator().manual_seed(i)) for i, name in enumerate("abc")}
GOLD = torch.tensor([7, 3, 7, 9])


def inputs(scores=None, gold=None, columns=None, sides=None):
    """Loss inputs of one process, by default from SCORES and GOLD."""
    gold = GOLD if gold is None else gold
    columns = gold if columns is None else columns
    golds = gold[:, None] if gold.ndim == 1 else gold
    mentions, entities = sides or random_sides(len(gold), len(columns) - len(gold))
    return LossInputs(SCORES if scores is None else scores, mentions, entities, same_gold(golds, columns))


def test_the_total_is_the_sum_of_the_terms():
    total, terms = UnitConsistentLoss()(inputs())
    assert {name: pytest.approx(literal_cross_entropy(s), rel=1e-5) for name, s in SCORES.items()} == {
        name: term.item() for name, term in terms.items()
    }
    assert total.item() == pytest.approx(sum(literal_cross_entropy(s) for s in SCORES.values()), rel=1e-5)


def test_weights_and_temperature():
    total, terms = UnitConsistentLoss(weights={"a": 2.0, "b": 0.0}, temperature=0.5)(inputs())
    assert set(terms) == {"a", "c"}
    expected = 2 * literal_cross_entropy(SCORES["a"], 0.5) + literal_cross_entropy(SCORES["c"], 0.5)
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_masked_false_negatives_leave_their_columns_out():
    _, terms = UnitConsistentLoss(mask_false_negatives=True)(inputs())
    expected = literal_cross_entropy(SCORES["a"], left_out={(0, 2), (2, 0)})
    assert terms["a"].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("learned", [True, False])
def test_half_precision_scores_are_widened_before_they_are_divided(learned):
    loss = UnitConsistentLoss(temperature=0.07, learn_temperature=learned)
    half = {name: score.bfloat16() for name, score in SCORES.items()}
    wide = {name: score.float() for name, score in half.items()}
    assert torch.equal(loss(inputs(half))[0], loss(inputs(wide))[0])


def test_a_batch_of_one_has_nothing_to_contrast():
    total, _ = UnitConsistentLoss()(inputs({"overall": torch.tensor([[3.0]])}, torch.tensor([0])))
    assert total.item() == 0


@pytest.mark.parametrize("weights", [{"d": 1.0}, {"a": 0.0, "b": 0.0, "c": 0.0}])
def test_weights_that_name_no_score_or_are_all_zero_are_rejected(weights):
    with pytest.raises(ConfigError):
        UnitConsistentLoss(weights=weights)(inputs())


def test_columns_of_any_gold_of_a_row_are_masked():
    golds = torch.tensor([[9, 7, -1], [3, -1, -1], [7, 3, -1], [9, -1, -1]])  # GOLD is drawn from these
    _, terms = UnitConsistentLoss(mask_false_negatives=True)(inputs(gold=golds, columns=GOLD))
    # Column 2 holds the drawn gold of row 0, column 3 its other gold, and so on.
    left_out = {(0, 2), (0, 3), (2, 0), (2, 1)}
    assert terms["a"].item() == pytest.approx(literal_cross_entropy(SCORES["a"], left_out=left_out), rel=1e-5)


@pytest.mark.parametrize("mask", [True, False])
def test_single_golds_give_the_same_loss_with_and_without_the_list(mask):
    loss = UnitConsistentLoss(mask_false_negatives=mask)
    padded = torch.stack([GOLD, torch.full_like(GOLD, -1)], dim=1)
    assert torch.equal(loss(inputs())[0], loss(inputs(gold=padded, columns=GOLD))[0])


def random_sides(count, more=0):
    torch.manual_seed(count)
    return (random_features(size, FeatureDims(6, 5)) for size in (count, count + more))


def test_a_learned_temperature_starts_at_its_value_and_gets_a_gradient():
    fixed, learned = UnitConsistentLoss(temperature=0.5), UnitConsistentLoss(temperature=0.5, learn_temperature=True)
    total, _ = learned(inputs())
    torch.testing.assert_close(total, fixed(inputs())[0])
    total.backward()
    step = 1e-3
    with torch.no_grad():
        learned.log_temperature += step
        difference = (learned(inputs())[0] - total) / step
    torch.testing.assert_close(learned.log_temperature.grad, difference, rtol=1e-2, atol=1e-3)
    assert not list(fixed.parameters())


def test_the_symmetric_term_is_the_loss_of_the_columns():
    sides = random_sides(4)
    term = SymmetricLoss(temperature=0.5, scores=("a", "b"))(inputs(sides=sides))
    left_out = {(0, 2), (2, 0)}
    expected = [literal_cross_entropy(SCORES[name].T, 0.5, left_out) for name in "ab"]
    assert term.item() == pytest.approx(sum(expected) / 2, rel=1e-5)


def test_the_symmetric_term_needs_scores_of_the_model():
    with pytest.raises(ConfigError, match="scores are"):
        SymmetricLoss()(inputs())


@pytest.mark.parametrize("modalities", [("text",), ("image",), ("text", "image")])
def test_the_intra_modal_term_contrasts_cosines(modalities):
    mentions, entities = random_sides(4)
    term = IntraModalLoss(temperature=0.1, modalities=modalities)(inputs(sides=(mentions, entities)))
    expected = []
    for modality in modalities:
        m, e = (getattr(side, f"{modality}_global") for side in (mentions, entities))
        cosines = torch.nn.functional.cosine_similarity(m[:, None], e[None], dim=-1)
        expected.append(literal_cross_entropy(cosines, 0.1, {(0, 2), (2, 0)}))
    assert term.item() == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_the_assignment_is_doubly_stochastic():
    """Against Sinkhorn's iteration in plain (not log) space, which makes the plan doubly stochastic."""
    scores = {"overall": 2 * torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))}
    gold = torch.arange(5)
    term = AssignmentLoss(temperature=0.7, iterations=200)(inputs(scores, gold))
    plan = (scores["overall"] / 0.7).exp()
    for _ in range(400):
        plan = plan / plan.sum(dim=0, keepdim=True)
        plan = plan / plan.sum(dim=1, keepdim=True)
    assert torch.allclose(plan.sum(dim=0), torch.ones(5, dtype=torch.float64))
    assert term.item() == pytest.approx(-plan.diagonal().log().mean().item(), rel=1e-4)
    # Raising the scores of one entity for all mentions alike does not change the plan.
    raised = scores["overall"] + torch.tensor([9.0, 0, 0, 0, 0], dtype=torch.float64)
    shared = AssignmentLoss(temperature=0.7, iterations=200)(inputs({"overall": raised}, gold))
    assert shared.item() == pytest.approx(term.item(), rel=1e-3)


@pytest.mark.parametrize("term", [SymmetricLoss, IntraModalLoss, AssignmentLoss])
def test_auxiliary_losses_reject_invalid_arguments(term):
    for options in ({"weight": 0.0}, {"temperature": -1.0}):
        with pytest.raises(ConfigError):
            term(**options)
