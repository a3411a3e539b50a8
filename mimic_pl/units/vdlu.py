"""VDLU, the vision-based dual-gated unit (paper section 3.3.2), without a vector per pair."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.units.base import State, Unit
from mimic_pl.units.cone import centre
from mimic_pl.units.gates import KeySide, QuerySide, dual_gate, dual_gate_pairs, gate_values
from mimic_pl.units.kernel_choice import Kernel

_PAIRS_IN_CACHE = 1 << 17
"""Pairs of a tile and thread: each of the few values per pair takes 512 kB."""


class VDLU(Unit):
    """Image against image, in two directions with separate parameters.

        S_V = (f(entity -> mention) + f(mention -> entity)) / 2

    Args:
        dims: Widths of the features.
        hidden_dim: Width d of the vectors inside; the published model has d = ``dims.image``.
        kernel: Implementation: a fused Triton kernel or torch operations; ``auto`` prefers the kernel on GPUs.
        gated: If False, both gates are 1 for every pair, for ablations.
    """

    reads_padding = False

    @in_range(hidden_dim=COUNT, kernel=one_of(Kernel))
    def __init__(self, dims: FeatureDims, hidden_dim: int = 96, kernel: Kernel = "auto", gated: bool = True) -> None:
        super().__init__(dims)
        self.gated = gated
        self.entity_to_mention = DualGate(dims.image, hidden_dim, kernel, gated)
        self.mention_to_entity = DualGate(dims.image, hidden_dim, kernel, gated)

    def mention(self, features: Features) -> State:
        """State: ``query``, ``key``, ``pooled``, each ``[mentions, d]``."""
        return self._state(features, query=self.mention_to_entity, key=self.entity_to_mention)

    def entity(self, features: Features) -> State:
        """State: ``query``, ``key``, ``pooled``, each ``[entities, d]``."""
        return self._state(features, query=self.entity_to_mention, key=self.mention_to_entity)

    def score(self, mentions: State, entities: State) -> Tensor:
        """S_V, ``[mentions, entities]``."""
        queries, to_queries = self.mention_to_entity, self.entity_to_mention
        own = queries.query_side(mentions), to_queries.key_side(mentions)
        others = queries.key_side(entities), to_queries.query_side(entities)
        size = _tile(entities["query"], len(mentions["query"]))
        parts = []
        for start in range(0, max(1, len(entities["query"])), size):
            keys, from_queries = (side.rows(slice(start, start + size)) for side in others)
            parts.append((queries(own[0], keys) + to_queries(from_queries, own[1], by_key=True)) / 2)
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S_V of aligned pairs, ``[pairs]``."""
        return (self.entity_to_mention.pairs(entities, mentions) + self.mention_to_entity.pairs(mentions, entities)) / 2

    def query_vector(self, mentions: State) -> Tensor:
        """LN2 of query and key, halved, ``[mentions, 2 d]``.

        The product is S_V with gates of 0, where each direction is LN2(k) . LN2(q).
        """
        query, key = self.mention_to_entity.norm(mentions["query"]), self.entity_to_mention.norm(mentions["key"])
        return torch.cat([query, key], dim=-1) / 2

    def key_vector(self, entities: State) -> Tensor:
        """LN2 of key and query, ``[entities, 2 d]``."""
        key, query = self.mention_to_entity.norm(entities["key"]), self.entity_to_mention.norm(entities["query"])
        return torch.cat([key, query], dim=-1)

    def gates(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """The gate of each direction, ``entity_to_mention`` and ``mention_to_entity``, ``[mentions, entities]``."""
        if not self.gated:
            return {}
        mention, entity = self.mention(mentions), self.entity(entities)
        return {
            "entity_to_mention": self.entity_to_mention.gates(entity, mention).T,
            "mention_to_entity": self.mention_to_entity.gates(mention, entity),
        }

    @staticmethod
    def _state(features: Features, query: DualGate, key: DualGate) -> State:
        return {
            "query": query.global_(features.image_global),
            "key": key.global_(features.image_global),
            "pooled": key.local(features.image_local).mean(dim=1),
        }


class DualGate(nn.Module):
    """One direction f(query side -> key side) of VDLU.

    With q, k the projected global features, p the mean of the key side's projected tokens and d their width:

        c = W_f LN1(p + q) + b_f,   gate = tanh(w . c + b_g),   o = LN2(gate c + k),   f = o . LN2(q)

    LN1(p + q) is affine in (p~ + q~) / s with s^2 = (|p~|^2 + |q~|^2 + 2 p~.q~) / d + eps, so c = (a_p + a_q) / s + b,
    where a_p, a_q and b = W_f beta1 + b_f depend on one side or on none. The second norm and the final product only
    need the variance of gate c + k and its product with y = G2 LN2(q), which are sums of products of one-sided vectors.
    A pair needs five products and some twenty scalars, but no vector of width d.
    """

    def __init__(self, image_dim: int, hidden_dim: int, kernel: Kernel = "auto", gated: bool = True) -> None:
        super().__init__()
        self.kernel: Kernel = kernel
        self.global_ = nn.Linear(image_dim, hidden_dim)
        self.local = nn.Linear(image_dim, hidden_dim)
        self.norm_sum = nn.LayerNorm(hidden_dim)
        self.mix = nn.Linear(hidden_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.norm = nn.LayerNorm(hidden_dim)
        if not gated:
            # tanh(0 . c + 20) is exactly 1 in every dtype, so the kernels need no special case.
            nn.init.zeros_(self.gate.weight)
            nn.init.constant_(self.gate.bias, 20.0)
            self.gate.requires_grad_(False)

    def forward(self, queries: QuerySide, keys: KeySide, by_key: bool = False) -> Tensor:
        """f for every pair, ``[queries, keys]``, or ``[keys, queries]`` if ``by_key``."""
        eps = self.norm_sum.eps, self.norm.eps
        return dual_gate(queries, keys, *self._scalars(), *eps, kernel=self.kernel, by_key=by_key)

    def pairs(self, queries: State, keys: State) -> Tensor:
        """f for aligned pairs, ``[pairs]``."""
        eps = self.norm_sum.eps, self.norm.eps
        return dual_gate_pairs(self.query_side(queries), self.key_side(keys), *self._scalars(), *eps)

    def gates(self, queries: State, keys: State) -> Tensor:
        """The gate of every pair, ``[queries, keys]``."""
        gate_bias, _ = self._scalars()
        return gate_values(self.query_side(queries), self.key_side(keys), gate_bias, self.norm_sum.eps)

    def _scalars(self) -> tuple[Tensor, Tensor]:
        """w . b + b_g and |b~|^2."""
        bias = self._bias()
        gate_bias = bias @ self.gate.weight[0] + self.gate.bias
        return gate_bias, centre(bias).square().sum()

    def _bias(self) -> Tensor:
        """b = W_f beta1 + b_f, ``[d]``."""
        return self.mix(self.norm_sum.bias)

    def _gated(self, centred: Tensor) -> Tensor:
        """a = W_f G1 x~ for centred x, ``[*, d]``."""
        return nn.functional.linear(centred * self.norm_sum.weight, self.mix.weight)

    def query_side(self, state: State) -> QuerySide:
        """What f needs of the query side."""
        query = centre(state["query"])
        gated = self._gated(query)
        centred_gated = centre(gated)
        normed = self.norm(state["query"])
        target = centre(normed * self.norm.weight)
        bias = centre(self._bias())
        return QuerySide(
            query=query,
            gated=centred_gated,
            target=target,
            query_square=_square(query),
            gate=gated @ self.gate.weight[0],
            gated_square=_square(centred_gated),
            gated_bias=centred_gated @ bias,
            target_gated=(target * centred_gated).sum(-1),
            target_bias=target @ bias,
            offset=normed @ self.norm.bias,
        )

    def key_side(self, state: State) -> KeySide:
        """What f needs of the key side."""
        pooled, key = centre(state["pooled"]), centre(state["key"])
        gated = self._gated(pooled)
        centred_gated = centre(gated)
        bias = centre(self._bias())
        return KeySide(
            pooled=pooled,
            gated=centred_gated,
            key=key,
            pooled_square=_square(pooled),
            gate=gated @ self.gate.weight[0],
            gated_square=_square(centred_gated),
            gated_bias=centred_gated @ bias,
            gated_key=(centred_gated * key).sum(-1),
            key_square=_square(key),
            key_bias=key @ bias,
        )


def _tile(entities: Tensor, mentions: int) -> int:
    """Entities to score at once: on a CPU so few that the dozens of values per pair stay in the cache."""
    if torch.is_grad_enabled() or entities.device.type != "cpu":
        return max(1, len(entities))
    return max(1, _PAIRS_IN_CACHE * torch.get_num_threads() // max(1, mentions))


def _square(vectors: Tensor) -> Tensor:
    """|x|^2, ``[*]`` of ``[*, d]``."""
    return torch.linalg.vector_norm(vectors, dim=-1).square()
