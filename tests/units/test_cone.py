"""The bounds of the cone against scores for arbitrary weights."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mimic_pl.features import FeatureDims
from mimic_pl.units import TGLU
from mimic_pl.units.cone import Cone
from tests import reference

EPS = 1e-5


def scores_of(value, weights, direction):
    """g . LayerNorm(sum w_j v_j) in float64, ``[mentions, samples, entities]``."""
    mean = torch.einsum("mst,mtd->msd", weights.double(), value.double())
    normed = torch.nn.functional.layer_norm(mean, mean.shape[-1:], eps=EPS)
    return torch.einsum("msd,ed->mse", normed, direction.double())


def all_bounds(cone, direction):
    """The bounds by the axis and those by the rays, each lower and upper, ``[mentions, entities]``."""
    shape = len(cone.axis), len(direction)
    rows, columns = torch.cartesian_prod(*map(torch.arange, shape)).unbind(dim=1)
    return cone.bound(direction), tuple(bound.view(shape) for bound in cone.tighten(direction, rows, columns))


def centred(*shape):
    vectors = torch.randn(*shape)
    return vectors - vectors.mean(dim=-1, keepdim=True)


@settings(max_examples=60)
@given(
    tokens=st.integers(1, 9),
    width=st.integers(2, 12),
    spread=st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    scale=st.sampled_from([1e-4, 1.0, 1e3]),
    seed=st.integers(0, 10_000),
)
def test_no_weights_reach_beyond_the_bounds(tokens, width, spread, scale, seed):
    """Narrow and wide cones, tiny values (which the eps of LayerNorm shrinks) and huge ones, corners and interiors."""
    torch.manual_seed(seed)
    value = scale * (torch.randn(3, 1, width) + spread * torch.randn(3, tokens, width))
    direction = centred(5, width)
    weights = torch.cat(
        [
            torch.eye(tokens),
            torch.rand(20, tokens) ** 8 + 1e-9,
            torch.distributions.Dirichlet(torch.ones(tokens)).sample((20,)),
        ]
    )
    weights = (weights / weights.sum(dim=-1, keepdim=True)).expand(3, -1, -1)
    values = scores_of(value, weights, direction)
    rounding = 1e-5 * math.sqrt(width) * direction.norm(dim=-1)
    for lower, upper in all_bounds(Cone.of(value, None, EPS), direction):
        assert (values <= upper[:, None] + rounding).all()
        assert (values >= lower[:, None] - rounding).all()


def test_directions_along_the_values_are_bounded():
    """Angles of 0 and 180 degrees between a direction and the axis, or a value, where cosines round to 1."""
    torch.manual_seed(3)
    value = centred(4, 1, 24) + 0.3 * centred(4, 5, 24)
    cone = Cone.of(value, None, EPS)
    own = value[:, 0] - value[:, 0].mean(dim=-1, keepdim=True)
    direction = torch.cat([cone.axis, -cone.axis, own, -own, cone.axis + 1e-4 * centred(4, 24)])
    direction = direction - direction.mean(dim=-1, keepdim=True)
    weights = torch.cat([torch.eye(5), torch.rand(50, 5) ** 8])
    values = scores_of(value, (weights / weights.sum(dim=-1, keepdim=True)).expand(4, -1, -1), direction)
    rounding = 1e-6 * math.sqrt(24) * direction.norm(dim=-1)
    for lower, upper in all_bounds(cone, direction):
        assert (values <= upper[:, None] + rounding).all()
        assert (values >= lower[:, None] - rounding).all()


def test_bounds_are_tight_where_they_can_be():
    """With a single token there is only one choice of weights."""
    torch.manual_seed(0)
    value, direction = torch.randn(4, 1, 32), centred(6, 32)
    exact = scores_of(value, torch.ones(4, 1, 1), direction)[:, 0].float()
    largest = math.sqrt(32) * direction.norm(dim=-1)
    by_axis, by_rays = all_bounds(Cone.of(value, None, EPS), direction)
    for (lower, upper), slack in ((by_axis, 2e-3), (by_rays, 5e-5)):
        assert ((upper - exact).abs() < slack * largest).all()
        assert ((lower - exact).abs() < slack * largest).all()


def test_rays_bound_more_tightly_than_the_axis():
    torch.manual_seed(2)
    cone = Cone.of(torch.randn(30, 1, 32) + 0.5 * torch.randn(30, 12, 32), None, EPS)
    by_axis, by_rays = all_bounds(cone, centred(40, 32))
    assert (by_rays[1] - by_rays[0]).mean() < 0.8 * (by_axis[1] - by_axis[0]).mean()


def test_values_in_all_directions_are_bounded_by_their_norm():
    value = torch.tensor([[[1.0, -1.0, 0.0], [-1.0, 1.0, 0.0]], [[1.0, -1.0, 0.0], [1.0, -1.0, 0.1]], [[0.0] * 3] * 2])
    cone = Cone.of(value, None, EPS)
    assert cone.cosine.lt(0).tolist() == [True, False, True]
    for lower, upper in all_bounds(cone, torch.tensor([[1.0, -2.0, 1.0]])):
        torch.testing.assert_close(upper[::2], torch.full((2, 1), math.sqrt(3) * math.sqrt(6)))
        torch.testing.assert_close(lower[::2], -upper[::2])


def test_masked_tokens_do_not_affect_the_bounds():
    torch.manual_seed(1)
    value, direction = torch.randn(3, 1, 16) + 0.2 * torch.randn(3, 6, 16), centred(4, 16)
    mask = torch.tensor([[1, 1, 1, 0, 0, 0], [1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1]])
    masked = sum(all_bounds(Cone.of(value, mask, EPS), direction), ())
    for row, count in enumerate(mask.sum(dim=1)):
        alone = sum(all_bounds(Cone.of(value[row : row + 1, :count], None, EPS), direction), ())
        for bound, own in zip(masked, alone, strict=True):
            torch.testing.assert_close(bound[row : row + 1], own, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_padding", [False, True])
@pytest.mark.parametrize(("num_mentions", "num_entities"), [(1, 1), (40, 300), (33, 257)])
def test_bounds_of_tglu_contain_its_scores(mask_padding, num_mentions, num_entities):
    torch.manual_seed(num_mentions)
    dims = FeatureDims(12, 4)
    unit = TGLU(dims, 16, mask_padding).eval()
    with torch.no_grad():
        for parameter in unit.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        mentions = unit.mention(reference.random_features(num_mentions, dims, tokens=7))
        entities = unit.entity(reference.random_features(num_entities, dims, tokens=5))
        scores = unit.score(mentions, entities)
        prepared = unit.prepare(mentions)
        bounds = unit.bounds(prepared, entities)
        rows, columns = torch.ones_like(scores).nonzero(as_tuple=True)
        tighter = unit.tighten(prepared, entities, bounds, rows, columns)
    rounding = 1e-5 * scores.abs().max()
    assert not bounds.exact
    for lower, upper in (bounds[:2], (bound.view_as(scores) for bound in tighter[:2])):
        assert (lower <= scores + rounding).all()
        assert (upper >= scores - rounding).all()
