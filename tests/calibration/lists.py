"""Random ranked lists with golds."""

from __future__ import annotations

import torch

from mimic_pl.calibration import ScoredLists


def random_lists(count: int, width: int, seed: int, outside: float = 0.0, nil: float = 0.0) -> ScoredLists:
    """Lists whose golds tend to be at the top.

    Args:
        outside: Fraction of mentions whose gold is below the list.
        nil: Fraction of mentions without a gold in the knowledge base.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(count, width, generator=generator, dtype=torch.float64)
    gold = torch.randint(0, width, (count,), generator=generator)
    scores[torch.arange(count), gold] += 1.0 + torch.rand(count, generator=generator, dtype=torch.float64)
    is_gold = torch.nn.functional.one_hot(gold, width).bool()
    scores, order = scores.sort(dim=1, descending=True)
    is_gold = is_gold.gather(1, order)
    draw = torch.rand(count, generator=generator)
    is_gold[draw < outside + nil] = False
    return ScoredLists(scores, is_gold, draw >= nil)
