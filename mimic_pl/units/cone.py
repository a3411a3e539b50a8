"""Bounds of a layer-normed weighted mean over all possible weights, which bound TGLU's attention."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_MIN_COSINE = 0.05
"""Cosine of the widest cone in use. Wider ones bound nothing, and dividing by their cosines loses precision."""

_SLACK = 1e-5
"""Fraction of the largest possible product by which bounds are widened to cover float32 rounding."""

_ROWS, _COLUMNS = 32, 256
"""Mentions and directions per tile on a CPU, whose products with all rays stay in the cache."""


class Cone(NamedTuple):
    """The cone that the values of each mention span, described relative to its axis.

    Let v_j be a mention's values, centred over the dimension as LayerNorm centres them, and w any weights with w_j >= 0
    that sum to 1. For a centred direction g,

        g . LayerNorm(sum w_j v_j) = sqrt(d) g.u / |u| (1 + d eps / |u|^2)^-1/2   with   u = sum w_j v_j

    (LayerNorm without its affine part). Let m be a unit vector, the axis, with m.v_j > 0 for all j. Then

    - g.u / m.u is a mean of the g.v_j / m.v_j with positive weights w_j m.v_j, so it is between the smallest and the
      largest of these: the products of g with the *rays* v_j / m.v_j;
    - m.u / |u| is a cosine, at most 1 and at least the smallest m.v_j / |v_j|, since the vectors within an angle of the
      axis form a convex cone;
    - eps only shrinks the value, by the factor above, and |u| >= m.u >= the smallest m.v_j.

    Their product bounds g.u / |u|; where a mention's values point in all directions, |g| does. A pair costs one product
    per token of the mention instead of one per pair of tokens, and no exponential.

    Attributes:
        rays: v_j / m.v_j, ``[mentions, tokens, d]``; zeros where the cone is too wide.
        factor: The smallest m.u / |u| times the smallest eps factor, ``[mentions]``.
        wide: Whether |g| is the only bound, bool ``[mentions]``.
    """

    rays: Tensor
    factor: Tensor
    wide: Tensor

    @classmethod
    def of(cls, value: Tensor, mask: Tensor | None, eps: float) -> Cone:
        """Build the cones of a block of mentions.

        Args:
            value: Values, ``[mentions, tokens, d]``.
            mask: 1 for a token that may have weight, 0 for one that has none, ``[mentions, tokens]``.
            eps: The LayerNorm's epsilon.
        """
        centred = centre(value)
        directions = torch.nn.functional.normalize(centred, dim=-1)
        if mask is not None:
            directions = directions * mask.unsqueeze(-1)
            first = centred.gather(1, mask.long().argmax(dim=1).view(-1, 1, 1).expand(-1, 1, value.shape[-1]))
            centred = torch.where(mask.bool().unsqueeze(-1), centred, first)
        length = centred.norm(dim=-1)
        axis = torch.nn.functional.normalize(directions.sum(dim=1), dim=-1)
        along = torch.einsum("mtd,md->mt", centred, axis)
        cosine = (along / length.clamp_min(torch.finfo(value.dtype).tiny)).amin(dim=1)
        wide = cosine < _MIN_COSINE
        rays = torch.where(wide[:, None, None], 0.0, centred / along.unsqueeze(-1))
        shortest = along.amin(dim=1).clamp_min(torch.finfo(value.dtype).tiny)
        factor = cosine * (1 + value.shape[-1] * eps / shortest.square()).rsqrt()
        return cls(rays, factor, wide)

    def bound(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Bound g . LayerNorm(sum w_j v_j) over all weights w.

        Args:
            direction: Centred directions g, ``[entities, d]``.

        Returns:
            Lower and upper bounds, both ``[mentions, entities]``.
        """
        mentions, tokens, width = self.rays.shape
        lower = direction.new_empty(mentions, len(direction))
        upper = torch.empty_like(lower)
        columns, rows = (_COLUMNS, _ROWS) if direction.device.type == "cpu" else (len(direction), mentions)
        for row in range(0, mentions, rows):
            rays = self.rays[row : row + rows].flatten(0, 1)
            for column in range(0, len(direction), columns):
                product = rays @ direction[column : column + columns].T
                product = product.view(-1, tokens, product.shape[-1])
                part = slice(row, row + rows), slice(column, column + columns)
                # Two passes in the cache are faster than one torch.aminmax.
                lower[part], upper[part] = product.amin(dim=1), product.amax(dim=1)
        longest = direction.norm(dim=-1)
        factor, wide, slack = self.factor[:, None], self.wide[:, None], _SLACK * longest
        upper = torch.where(wide, longest, torch.maximum(upper, upper * factor).add_(slack)).minimum(longest)
        lower = torch.where(wide, -longest, torch.minimum(lower, lower * factor).sub_(slack)).maximum(-longest)
        return lower.mul_(math.sqrt(width)), upper.mul_(math.sqrt(width))


def centre(vectors: Tensor) -> Tensor:
    """Subtract the mean over the last dimension, as LayerNorm does."""
    return vectors - vectors.mean(dim=-1, keepdim=True)
