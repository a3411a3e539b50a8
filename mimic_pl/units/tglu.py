"""TGLU, the text-based global-local matching unit (paper section 3.3.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.units.attention import global_to_local, global_to_local_pairs, mean_attention_pairs
from mimic_pl.units.base import Bounds, State, Unit, at_pairs
from mimic_pl.units.cone import Cone, centre
from mimic_pl.units.kernel_choice import Kernel


class TGLU(Unit):
    """Text against text: product of the global embeddings, and attention of the entity's tokens to the mention's.

    With Q = W_q t_e^L, K = W_k t_m^L, V = W_v t_m^L and A = softmax(Q K^T / sqrt(d)) over the mention's tokens,

        g2g = t_m^G . t_e^G
        g2l = (W_c t_e^G) . LayerNorm(mean over the entity's tokens of A V)
        S_T = (g2g + g2l) / 2

    The mean is linear, so the attention *weights* are averaged over the entity's tokens before they are multiplied with
    V: a pair costs a ``[mention tokens]`` weight vector and no ``[entity tokens, hidden_dim]`` context (see
    :func:`~mimic_pl.units.attention.global_to_local`).

    Whatever the attention weights, the result is a weighted mean of the mention's values, which bounds g2l without
    computing the attention (see :class:`~mimic_pl.units.cone.Cone`).

    Args:
        dims: Widths of the features.
        hidden_dim: Width d of queries, keys and values.
        mask_padding: Exclude padding from the attention and the mean. The published model attends to padding.
        kernel: Implementation: a fused Triton kernel or torch operations; ``auto`` prefers the kernel on GPUs.
    """

    expensive = True

    @in_range(hidden_dim=COUNT, kernel=one_of(Kernel))
    def __init__(
        self, dims: FeatureDims, hidden_dim: int = 96, mask_padding: bool = False, kernel: Kernel = "auto"
    ) -> None:
        super().__init__(dims)
        self.mask_padding = mask_padding
        self.kernel: Kernel = kernel
        self.reads_padding = not mask_padding
        self.query = nn.Linear(dims.text, hidden_dim)
        self.key = nn.Linear(dims.text, hidden_dim)
        self.value = nn.Linear(dims.text, hidden_dim)
        self.context = nn.Linear(dims.text, hidden_dim)
        self.norm = nn.LayerNorm(hidden_dim)

    def mention(self, features: Features) -> State:
        """State: ``global`` ``[mentions, dims.text]``, ``key`` and ``value`` ``[mentions, tokens, d]``."""
        state = {
            "global": features.text_global,
            "key": self.key(features.text_local),
            "value": self.value(features.text_local),
        }
        return state | ({"mask": features.text_mask} if self.mask_padding else {})

    def entity(self, features: Features) -> State:
        """State: ``global`` ``[entities, dims.text]``, ``query`` ``[entities, tokens, d]``, ``context`` ``[., d]``."""
        state = {
            "global": features.text_global,
            "query": self.query(features.text_local),
            "context": self.context(features.text_global),
        }
        return state | ({"mask": features.text_mask} if self.mask_padding else {})

    def score(self, mentions: State, entities: State) -> Tensor:
        """S_T, ``[mentions, entities]``."""
        global_to_global = mentions["global"] @ entities["global"].T
        return (global_to_global + global_to_local(**self._local(mentions, entities), kernel=self.kernel)) / 2

    def prepare(self, mentions: State) -> State:
        """Add the cone that the mention's values span, for :meth:`bounds`."""
        return {**mentions, **Cone.of(mentions["value"], mentions.get("mask"), self.norm.eps)._asdict()}

    def bounds(self, mentions: State, entities: State) -> Bounds:
        """Bounds of S_T by the axis of the mention's cone, without the attention, ``[mentions, entities]``."""
        lower, upper = self._cone(mentions).bound(self._directions(entities))
        known = torch.addmm(self._offsets(entities), mentions["global"], entities["global"].T, alpha=0.5)
        return Bounds(lower.add_(known), upper.add_(known), known)

    def tighten(self, mentions: State, entities: State, bounds: Bounds, rows: Tensor, columns: Tensor) -> Bounds:
        """Bounds of S_T by all rays of the mentions' cones, ``[pairs]``."""
        assert bounds.known is not None
        lower, upper = self._cone(mentions).tighten(self._directions(entities), rows, columns)
        known = at_pairs(bounds.known, rows, columns)
        return Bounds(lower.add_(known), upper.add_(known))

    @staticmethod
    def _cone(mentions: State) -> Cone:
        return Cone(*(mentions[field] for field in Cone._fields))

    def _directions(self, entities: State) -> Tensor:
        """Directions whose products with the normed mean are half of g2l, without offsets, ``[entities, d]``."""
        return centre(entities["context"] * (self.norm.weight / 2))

    def _offsets(self, entities: State) -> Tensor:
        return entities["context"] @ (self.norm.bias / 2)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S_T of aligned pairs, ``[pairs]``."""
        global_to_global = (mentions["global"] * entities["global"]).sum(dim=-1)
        return (global_to_global + global_to_local_pairs(**self._local(mentions, entities))) / 2

    def query_vector(self, mentions: State) -> Tensor:
        """Half of t_m^G and of LayerNorm(mean of the values), ``[mentions, dims.text + d]``.

        The product is S_T with equal attention to all of the mention's tokens; in particular, g2g is exact.
        """
        value, mask = mentions["value"], mentions.get("mask")
        weights = value.new_ones(value.shape[:2]) if mask is None else mask.to(value.dtype)
        mean = torch.einsum("mt,mtd->md", weights, value) / weights.sum(dim=1, keepdim=True).clamp_min(1)
        return torch.cat([mentions["global"], self.norm(mean)], dim=-1) / 2

    def key_vector(self, entities: State) -> Tensor:
        """t_e^G and W_c t_e^G, ``[entities, dims.text + d]``."""
        return torch.cat([entities["global"], entities["context"]], dim=-1)

    def attention(self, mentions: State, entities: State) -> Tensor:
        """A of aligned pairs, averaged over the entity's tokens, ``[pairs, mention tokens]``; rows sum to 1."""
        local = self._local(mentions, entities)
        return mean_attention_pairs(*(local[name] for name in ("query", "key", "query_mask", "key_mask")))

    def _local(self, mentions: State, entities: State) -> dict[str, Any]:
        """Arguments for the functions that compute g2l."""
        return {
            "query": entities["query"],
            "context": entities["context"],
            "key": mentions["key"],
            "value": mentions["value"],
            "norm_weight": self.norm.weight,
            "norm_bias": self.norm.bias,
            "eps": self.norm.eps,
            "query_mask": entities["mask"] if self.mask_padding else None,
            "key_mask": mentions["mask"] if self.mask_padding else None,
        }
