"""Float64 scores of selected pairs, which resolve near ties."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from mimic_pl.ranking.stored_states import pick
from mimic_pl.units import Matcher, States

_NUMBERS_ON_CPU = 1 << 20
"""State values converted to float64 at once on a CPU: 8 MB, which stay in the caches."""

_NUMBERS_ON_DEVICE = 1 << 26
"""State values converted to float64 at once on other devices: half a gigabyte."""

M = TypeVar("M", bound=nn.Module)


class ExactScores:
    """Scores selected pairs in float64 and rounds to float32: these scores define the order of entities.

    The last bits of a matrix product depend on its shape, so float32 scores depend on the block size. Where such a
    score is too close to a gold's to decide, both are computed here, from the same stored states, and rounded: equal
    entities get equal scores, and ranks depend neither on block size nor on the number of processes.

    Args:
        matcher: Scores pairs.
        mentions: States of the mentions.
    """

    def __init__(self, matcher: Matcher, mentions: States) -> None:
        state = next(iter(mentions.values()))
        device = next(iter(state.values())).device
        # Apple's GPUs have no float64.
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.matcher = with_own_tensors(matcher).to(self.device, torch.float64)
        self.mentions = mentions

    def __call__(self, rows: Tensor, entities: States, names: tuple[str, ...] | None = None) -> dict[str, Tensor]:
        """Scores of aligned pairs, float32 ``[pairs]`` by name.

        Args:
            rows: Mentions, int64 ``[pairs]``.
            entities: States of as many entities.
            names: Units to score with; by default all of them, plus ``overall``.
        """
        scores = {name: self._score(name, rows, entities) for name in names or tuple(self.matcher.units)}
        if names is None:
            scores = {"overall": self.matcher.overall(scores), **scores}
        return {name: score.float().to(rows.device) for name, score in scores.items()}

    def _score(self, name: str, rows: Tensor, entities: States) -> Tensor:
        """One unit's scores, float64 ``[pairs]``."""
        numbers = sum(tensor[0].numel() for tensor in self.mentions[name].values())
        at_once = (_NUMBERS_ON_CPU if rows.device.type == "cpu" else _NUMBERS_ON_DEVICE) // (2 * numbers)
        parts = torch.split(torch.arange(len(rows), device=rows.device), max(32, at_once))
        mentions, entities = {name: self.mentions[name]}, {name: entities[name]}
        scores = []
        for part in parts:
            sides = pick(mentions, rows[part], self.device), pick(entities, part, self.device)
            scores.append(self.matcher.pairs(*sides, (name,))[name])
        return torch.cat(scores)


def with_own_tensors(module: M) -> M:
    """A copy that can be converted without changing the original; everything but tensors and submodules is shared.

    ``copy.deepcopy`` takes several times as long, which a mention with few candidates would notice.
    """
    made = module.__new__(type(module))
    made.__dict__ = module.__dict__.copy()
    made._parameters = {name: _own(parameter) for name, parameter in module._parameters.items()}
    made._buffers = dict(module._buffers)
    made._modules = {name: None if part is None else with_own_tensors(part) for name, part in module._modules.items()}
    return made


def _own(parameter: nn.Parameter | None) -> nn.Parameter | None:
    return None if parameter is None else nn.Parameter(parameter.detach(), requires_grad=False)
