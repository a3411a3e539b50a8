"""Units with pruned weights (torch.nn.utils.prune)."""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn.utils import prune

from mimic_pl.features import FeatureDims, Features
from mimic_pl.units import Matcher, published_units

DIMS = FeatureDims(text=12, image=8)


def features(count, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(count, *shape, generator=generator)

    return Features(draw(12), draw(5, 12), draw(8), draw(4, 8), torch.ones(count, 5))


def test_scores_use_the_pruned_weights():
    """After training steps and in another dtype, scores equal those of an unpruned matcher with the masked weights."""
    torch.manual_seed(0)
    pruned, plain = Matcher(DIMS, published_units()), Matcher(DIMS, published_units())
    for layer in pruned.modules():
        if isinstance(layer, nn.Linear | nn.LayerNorm):
            prune.random_unstructured(layer, "weight", amount=0.5)
    sides = features(3, 1), features(4, 2)

    def scores(matcher, dtype=torch.float32):
        mentions, entities = (Features(*(part.to(dtype) for part in side[:5])) for side in sides)
        return matcher.score(matcher.mention(mentions), matcher.entity(entities))

    optimizer = torch.optim.SGD(pruned.parameters(), lr=0.1)
    for _ in range(2):
        scores(pruned)["overall"].square().mean().backward()
        optimizer.step()
    weights = {name: value for name, value in pruned.state_dict().items() if not name.endswith(("_orig", "_mask"))}
    for name, mask in pruned.state_dict().items():
        if name.endswith("_mask"):
            weights[name.removesuffix("_mask")] = mask * pruned.state_dict()[f"{name.removesuffix('_mask')}_orig"]
    plain.load_state_dict(weights)
    with torch.no_grad():
        for name, expected in scores(plain).items():
            torch.testing.assert_close(scores(pruned)[name], expected)
        # Ranking scores with a copy in float64 whose layers were never called.
        wide, expected = copy.deepcopy(pruned).double(), copy.deepcopy(plain).double()
        sides = tuple(Features(*(part.double() for part in side[:5])) for side in sides)
        states = expected.mention(sides[0]), expected.entity(sides[1])
        for name, score in expected.score(*states).items():
            torch.testing.assert_close(wide.score(*states)[name], score)
