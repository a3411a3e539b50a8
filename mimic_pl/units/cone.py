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

_ROUNDING = 1e-6
"""Error of a cosine in float32, by which cones are wider: a narrow one must not become a ray by it."""

_PAIRS = 1 << 15
"""Pairs per tile and thread on a CPU: each of the few values per pair takes 128 kB and stays in the cache."""


class Cone(NamedTuple):
    """The cone that the values of each mention span, described relative to its axis.

    Let v_j be a mention's values, centred over the dimension as LayerNorm centres them, and w any weights with w_j >= 0
    that sum to 1. For a centred direction g,

        g . LayerNorm(sum w_j v_j) = sqrt(d) g.u / |u| (1 + d eps / |u|^2)^-1/2   with   u = sum w_j v_j

    (LayerNorm without its affine part). Let m be a unit vector, the axis, with m.v_j > 0 for all j, and r the largest
    angle between m and a v_j. Vectors within an angle of the axis form a convex cone, so u is in it, too:

    - The angle of g and u is that of g and m, give or take r (:meth:`bound`). A pair costs one product.
    - g.u / m.u is a mean of the g.v_j / m.v_j with positive weights w_j m.v_j, so it is between the smallest and the
      largest of these, the products of g with the *rays* v_j / m.v_j; and m.u / |u| is between cos r and 1
      (:meth:`tighten`). A pair costs one product per token of the mention.
    - eps only shrinks the value, by the factor above, and |u| >= m.u >= the smallest m.v_j.

    Where a mention's values point in all directions, |g| is the only bound of g.u / |u|. No bound needs an exponential.

    Attributes:
        axis: m, ``[mentions, d]``.
        rays: v_j / m.v_j, ``[mentions, tokens, d]``; zeros where the cone is too wide.
        cosine: cos r, ``[mentions]``; -1 where the cone is too wide.
        shrinking: The smallest eps factor, ``[mentions]``; 1 where the cone is too wide.
    """

    axis: Tensor
    rays: Tensor
    cosine: Tensor
    shrinking: Tensor

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
        shrinking = (1 + value.shape[-1] * eps / shortest.square()).rsqrt()
        return cls(
            axis, rays, torch.where(wide, -1.0, (cosine - _ROUNDING).clamp_max(1)), torch.where(wide, 1.0, shrinking)
        )

    def bound(self, direction: Tensor) -> tuple[Tensor, Tensor]:
        """Bound g . LayerNorm(sum w_j v_j) over all weights w, by the angle of g and the axis.

        Args:
            direction: Centred directions g, ``[entities, d]``.

        Returns:
            Lower and upper bounds, both ``[mentions, entities]``.
        """
        direction = direction * math.sqrt(direction.shape[-1])
        cosine, slack = self.cosine[:, None], self._slack[:, None]
        sine = (1 - cosine.square()).sqrt()
        lower = direction.new_empty(len(self.axis), len(direction))
        upper = torch.empty_like(lower)
        pairs = _PAIRS * torch.get_num_threads()
        size = max(1, pairs // max(1, len(lower))) if direction.device.type == "cpu" else len(direction)
        for start in range(0, len(direction), size):
            part = slice(start, start + size)
            length = direction[part].norm(dim=-1)
            along = self.axis @ direction[part].T
            # Where g is on the axis, rounding would turn a small angle into 0: the lower bound needs it.
            across = torch.addcmul((1 + _SLACK) * length.square(), along, along, value=-1).clamp_min_(0).sqrt_()
            within = along >= length * cosine
            opposite = along <= -length * cosine
            along.mul_(cosine)
            higher, less = torch.addcmul(along, across, sine), torch.addcmul(along, across, sine, value=-1)
            upper[:, part] = torch.where(within, length, higher).addcmul_(slack, length)
            lower[:, part] = torch.where(opposite, -length, less).addcmul_(slack, length, value=-1)
        return lower, upper

    def tighten(self, direction: Tensor, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Bound the same of selected pairs, by the products of g with all rays.

        Args:
            direction: Centred directions g, ``[entities, d]``.
            rows: Mentions of the pairs, ascending, int64 ``[pairs]``.
            columns: Entities of the pairs, int64 ``[pairs]``.

        Returns:
            Lower and upper bounds, both ``[pairs]``.
        """
        direction = direction * math.sqrt(direction.shape[-1])
        lower = direction.new_empty(len(rows))
        upper = torch.empty_like(lower)
        counts = torch.bincount(rows, minlength=len(self.rays)).tolist()
        start = 0
        for rays, count in zip(self.rays, counts, strict=True):
            part = slice(start, start + count)
            if 2 * count > len(direction):  # copying most of the directions takes as long as the products
                products = rays @ direction.T
                lower[part], upper[part] = (
                    extreme.index_select(0, columns[part]) for extreme in (products.amin(dim=0), products.amax(dim=0))
                )
            elif count:
                products = rays @ direction.index_select(0, columns[part]).T
                lower[part], upper[part] = products.amin(dim=0), products.amax(dim=0)
            start += count
        length = direction.norm(dim=-1).index_select(0, columns)
        cosine, slack = self.cosine.index_select(0, rows), self._slack.index_select(0, rows) * length
        wide = cosine < 0
        upper = torch.where(wide, length, torch.maximum(upper, upper * cosine).add_(slack)).minimum(length)
        lower = torch.where(wide, -length, torch.minimum(lower, lower * cosine).sub_(slack)).maximum(-length)
        return lower, upper

    @property
    def _slack(self) -> Tensor:
        """Widening of bounds relative to |g|, for rounding and eps, ``[mentions]``."""
        return torch.where(self.cosine < 0, 0.0, _SLACK + 1 - self.shrinking)


def centre(vectors: Tensor) -> Tensor:
    """Subtract the mean over the last dimension, as LayerNorm does."""
    return vectors - vectors.mean(dim=-1, keepdim=True)
