"""Float64 scores of pairs: equal to those of a deep copy, without changing the matcher."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import orthogonal

from mimic_pl.benchmark.problem import random_matcher, random_problem
from mimic_pl.ranking.exact import ExactScores

ROWS, ORDER = torch.tensor([0, 1, 1, 2]), torch.tensor([3, 0, 7, 7])


def plain(matcher):
    pass


def pruned(matcher):
    prune.random_unstructured(matcher.units["vision"].entity_to_mention.gate, "weight", 0.5)


def parametrized(matcher):
    orthogonal(matcher.units["vision"].entity_to_mention.gate)


@pytest.mark.parametrize("change", [plain, pruned, parametrized])
@torch.no_grad()
def test_scores_are_those_of_a_deep_copy_and_the_matcher_is_unchanged(change):
    problem = random_problem(3, 8, 8, 1, "cpu")
    matcher = random_matcher(1, "cpu")
    change(matcher)
    states = problem.index.select(ORDER).states
    before = {name: (id(tensor), tensor.clone()) for name, tensor in matcher.state_dict(keep_vars=True).items()}
    found = ExactScores(matcher, problem.states)(ROWS, states)
    double = copy.deepcopy(matcher).double()
    sides = [
        {u: {n: t[rows].double() for n, t in state.items()} for u, state in of.items()}
        for of, rows in ((problem.states, ROWS), (states, torch.arange(4)))
    ]
    wanted = double.pairs(*sides)
    unchanged = random_matcher(1, "cpu").double().pairs(*sides)["vision"]
    assert torch.equal(wanted["vision"], unchanged) == (change is plain)
    for name, scores in wanted.items():
        assert torch.equal(found[name], scores.float()), name
    assert torch.equal(found["overall"], double.combine(wanted).float())
    after = matcher.state_dict(keep_vars=True)
    assert {name: id(tensor) for name, tensor in after.items()} == {name: own for name, (own, _) in before.items()}
    assert all(
        torch.equal(after[name], value) and after[name].dtype == value.dtype for name, (_, value) in before.items()
    )
