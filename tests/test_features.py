"""Features are mapped, selected and joined with all tensors that they hold."""

import torch

from mimic_pl.features import FeatureDims
from tests.reference import random_features


def sample(with_extra):
    torch.manual_seed(0)
    features = random_features(5, FeatureDims(4, 3))
    extra = {"lexical.ids": torch.arange(10).view(5, 2), "objects": torch.rand(5, 2)}
    return features._replace(extra=extra) if with_extra else features


def leaves(features):
    return [*features[:5], *features.extra.values()]


def test_rows_select_from_every_tensor():
    for with_extra in (True, False):
        features = sample(with_extra)
        assert len(leaves(features)) == (7 if with_extra else 5)
        for chosen in (slice(1, 4), torch.tensor([4, 0, 0])):
            for part, whole in zip(leaves(features.rows(chosen)), leaves(features), strict=True):
                assert torch.equal(part, whole[chosen])


def test_joined_parts_equal_the_whole():
    for with_extra in (True, False):
        features = sample(with_extra)
        joined = features.joined(features.rows(slice(start, start + 2)) for start in (0, 2, 4))
        for part, whole in zip(leaves(joined), leaves(features), strict=True):
            assert torch.equal(part, whole)


def test_float32_leaves_integers_alone():
    single = sample(True).to(torch.bfloat16).to(torch.float32)
    assert [t.dtype for t in leaves(single)] == [torch.float32] * 4 + [
        single.text_mask.dtype,
        torch.int64,
        torch.float32,
    ]
    assert not single.text_mask.is_floating_point()
