"""TGLU, the text-based global-local matching unit (paper section 3.3.1)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.units.base import Bounds, State, Unit
from mimic_pl.units.cone import Cone

_LOGITS_IN_CACHE = 1 << 20
"""Attention logits computed at once where no gradient is needed: 4 MB, about what stays in a core's cache."""


class TGLU(Unit):
    """Text against text: the global embeddings' product, and the entity's tokens attending to the mention's.

    With Q = W_q t_e^L, K = W_k t_m^L, V = W_v t_m^L and A = softmax(Q K^T / sqrt(d)) over the mention's tokens,

        g2g = t_m^G . t_e^G
        g2l = (W_c t_e^G) . LayerNorm(mean over the entity's tokens of A V)
        S_T = (g2g + g2l) / 2

    The mean is linear, so the attention *weights* are averaged over the entity's tokens before they meet V: a pair
    costs a ``[mention tokens]`` weight vector and no ``[entity tokens, hidden_dim]`` context.

    Whatever the attention is, its context is a weighted mean of the mention's values: that bounds g2l without it (see
    :class:`~mimic_pl.units.cone.Cone`).

    Args:
        dims: Widths of the features.
        hidden_dim: Width d of queries, keys and values.
        mask_padding: Keep padding out of the attention and of the mean. The published model attends over padding.
    """

    def __init__(self, dims: FeatureDims, hidden_dim: int = 96, mask_padding: bool = False) -> None:
        super().__init__(dims)
        self.mask_padding = mask_padding
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
        weights = self._mean_attention(mentions, entities)  # [entities, mentions, mention tokens]
        local = torch.einsum("emt,mtd->emd", weights, mentions["value"])
        global_to_local = torch.einsum("emd,ed->me", self.norm(local), entities["context"])
        return (global_to_global + global_to_local) / 2

    def prepare(self, mentions: State) -> State:
        """Add the cone that the mention's values span, for :meth:`bounds`."""
        return {**mentions, **Cone.of(mentions["value"], mentions.get("mask"), self.norm.eps)._asdict()}

    def bounds(self, mentions: State, entities: State) -> Bounds:
        """Bounds of S_T without the attention, ``[mentions, entities]``."""
        cone = Cone(*(mentions[field] for field in Cone._fields))
        context = entities["context"]
        direction = context * self.norm.weight
        direction = direction - direction.mean(dim=-1, keepdim=True)
        lower, upper = cone.bound(direction)
        known = mentions["global"] @ entities["global"].T + context @ self.norm.bias
        return Bounds((known + lower) / 2, (known + upper) / 2)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S_T of aligned pairs, ``[pairs]``."""
        global_to_global = (mentions["global"] * entities["global"]).sum(dim=-1)
        width = self.norm.normalized_shape[0]
        # Scaled queries: the transposed keys would be copied.
        logits = torch.bmm(entities["query"] / math.sqrt(width), mentions["key"].transpose(1, 2))
        if self.mask_padding:
            logits = logits.masked_fill(mentions["mask"].eq(0).unsqueeze(1), -torch.inf)
            real = entities["mask"].to(logits.dtype)
            weights = torch.einsum("pst,ps->pt", logits.softmax(dim=-1), real / real.sum(dim=1, keepdim=True))
        else:
            weights = logits.softmax(dim=-1).mean(dim=1)
        local = (weights.unsqueeze(-1) * mentions["value"]).sum(dim=1)
        global_to_local = (self.norm(local) * entities["context"]).sum(dim=-1)
        return (global_to_global + global_to_local) / 2

    def _mean_attention(self, mentions: State, entities: State) -> Tensor:
        """Attention over the mention's tokens, averaged over the entity's: ``[entities, mentions, mention tokens]``."""
        num_mentions, mention_tokens, width = mentions["key"].shape
        num_entities, entity_tokens, _ = entities["query"].shape
        keys = (mentions["key"] / math.sqrt(width)).flatten(0, 1).T
        # With gradients the whole is one block, which autograd keeps; without, blocks that stay in the cache.
        blocks = 1
        if not torch.is_grad_enabled():
            blocks = -(-num_entities * entity_tokens * num_mentions * mention_tokens // _LOGITS_IN_CACHE)
        block = -(-num_entities // min(blocks, num_entities))  # of about one size
        means = []
        for start in range(0, num_entities, block):
            queries = entities["query"][start : start + block]
            logits = (queries.flatten(0, 1) @ keys).view(-1, entity_tokens, num_mentions, mention_tokens)
            if self.mask_padding:
                logits = logits.masked_fill(mentions["mask"].eq(0), -torch.inf)
                real = entities["mask"][start : start + block].to(logits.dtype)
                weight = real / real.sum(dim=1, keepdim=True)
                means.append(torch.einsum("esmt,es->emt", logits.softmax(dim=-1), weight))
            else:
                means.append(logits.softmax(dim=-1).mean(dim=1))
        return torch.cat(means)
