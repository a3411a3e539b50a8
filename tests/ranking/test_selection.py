"""Comparisons of whole blocks equal those of torch, for every dtype that scores may have."""

import pytest
import torch

from mimic_pl.ranking.selection import above, at_least


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(5, 7), (0, 7), (5, 0)])
def test_values_are_compared_with_those_of_their_rows(dtype, shape):
    torch.manual_seed(3)
    values = torch.randint(-2, 3, shape).to(dtype)
    values[values == 2] = torch.inf
    least = torch.randint(-2, 3, shape[:1]).float()
    assert torch.equal(above(values, least), values > least[:, None])
    assert torch.equal(at_least(values, least), values >= least[:, None])
    values[:, ::3] = torch.nan
    assert torch.equal(at_least(values, least), values >= least[:, None])
