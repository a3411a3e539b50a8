"""VDLU, the vision-based dual-gated unit (paper section 3.3.2), without a vector per pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mimic_pl.features import FeatureDims, Features
from mimic_pl.units.base import State, Unit

_Product = Callable[[Tensor, Tensor], Tensor]
"""Products of query-side and key-side vectors: of all pairs, or of aligned ones."""


class VDLU(Unit):
    """Picture against picture, in two directions with parameters of their own.

        S_V = (f(entity -> mention) + f(mention -> entity)) / 2

    Args:
        dims: Widths of the features.
        hidden_dim: Width d of the vectors inside; the published model has d = ``dims.image``.
    """

    reads_padding = False

    def __init__(self, dims: FeatureDims, hidden_dim: int = 96) -> None:
        super().__init__(dims)
        self.entity_to_mention = DualGate(dims.image, hidden_dim)
        self.mention_to_entity = DualGate(dims.image, hidden_dim)

    def mention(self, features: Features) -> State:
        """State: ``query``, ``key``, ``pooled``, each ``[mentions, d]``."""
        return self._state(features, asks=self.mention_to_entity, answers=self.entity_to_mention)

    def entity(self, features: Features) -> State:
        """State: ``query``, ``key``, ``pooled``, each ``[entities, d]``."""
        return self._state(features, asks=self.entity_to_mention, answers=self.mention_to_entity)

    def score(self, mentions: State, entities: State) -> Tensor:
        """S_V, ``[mentions, entities]``."""
        return (self.entity_to_mention(entities, mentions).T + self.mention_to_entity(mentions, entities)) / 2

    def pairs(self, mentions: State, entities: State) -> Tensor:
        """S_V of aligned pairs, ``[pairs]``."""
        return (self.entity_to_mention.pairs(entities, mentions) + self.mention_to_entity.pairs(mentions, entities)) / 2

    @staticmethod
    def _state(features: Features, asks: DualGate, answers: DualGate) -> State:
        return {
            "query": asks.global_(features.image_global),
            "key": answers.global_(features.image_global),
            "pooled": answers.local(features.image_local).mean(dim=1),
        }


class _Asking(NamedTuple):
    """Query side of a direction: vectors ``[queries, d]`` and numbers ``[queries]``; ~ means centred over d."""

    query: Tensor  # q~
    gated: Tensor  # a_q~, with a_q = W_f G1 q~
    target: Tensor  # y~, with y = G2 LN2(q)
    query_square: Tensor  # |q~|^2
    gate: Tensor  # w . a_q
    gated_square: Tensor  # |a_q~|^2
    gated_bias: Tensor  # a_q~ . b~
    target_gated: Tensor  # y~ . a_q~
    target_bias: Tensor  # y~ . b~
    offset: Tensor  # beta2 . LN2(q)


class _Answering(NamedTuple):
    """Key side of a direction: vectors ``[keys, d]`` and numbers ``[keys]``."""

    pooled: Tensor  # p~
    gated: Tensor  # a_p~, with a_p = W_f G1 p~
    key: Tensor  # k~
    pooled_square: Tensor  # |p~|^2
    gate: Tensor  # w . a_p
    gated_square: Tensor  # |a_p~|^2
    gated_bias: Tensor  # a_p~ . b~
    gated_key: Tensor  # a_p~ . k~
    key_square: Tensor  # |k~|^2
    key_bias: Tensor  # k~ . b~


class DualGate(nn.Module):
    """One direction f(query side -> key side) of VDLU.

    With q, k the projected global features, p the mean of the key side's projected tokens and d their width:

        c = W_f LN1(p + q) + b_f,   gate = tanh(w . c + b_g),   o = LN2(gate c + k),   f = o . LN2(q)

    LN1(p + q) is affine in (p~ + q~) / s with s^2 = (|p~|^2 + |q~|^2 + 2 p~.q~) / d + eps, so c = (a_p + a_q) / s + b,
    where a_p, a_q and b = W_f beta1 + b_f belong to one side or to none. The variance of gate c + k and its product
    with y = G2 LN2(q), which are all that the second norm and the last product need, are sums of products of one-sided
    vectors. A pair needs five products and some twenty scalars, never a vector of width d.
    """

    def __init__(self, image_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.global_ = nn.Linear(image_dim, hidden_dim)
        self.local = nn.Linear(image_dim, hidden_dim)
        self.norm_sum = nn.LayerNorm(hidden_dim)
        self.mix = nn.Linear(hidden_dim, hidden_dim)
        self.gate = nn.Linear(hidden_dim, 1)
        self.norm = nn.LayerNorm(hidden_dim)

    def forward(self, queries: State, keys: State) -> Tensor:
        """f for every pair, ``[queries, keys]``."""
        asking = self._asking(queries)
        # Vectors stay as they are, numbers become columns, so that they meet every key.
        columns = _Asking(*(tensor if tensor.ndim == 2 else tensor.unsqueeze(-1) for tensor in asking))
        return self._score(columns, self._answering(keys), lambda query, key: query @ key.T)

    def pairs(self, queries: State, keys: State) -> Tensor:
        """f for aligned pairs, ``[pairs]``."""
        return self._score(self._asking(queries), self._answering(keys), lambda query, key: (query * key).sum(dim=-1))

    def _score(self, asking: _Asking, answering: _Answering, product: _Product) -> Tensor:
        bias = self._bias()
        width = bias.shape[0]

        pooled_query = product(asking.query, answering.pooled)
        spread = (asking.query_square + answering.pooled_square + 2 * pooled_query).clamp_min(0) / width
        r = (spread + self.norm_sum.eps).rsqrt()  # 1 / s
        gate_bias = bias @ self.gate.weight[0] + self.gate.bias
        gate = torch.tanh((asking.gate + answering.gate) * r + gate_bias)

        # Products of the centred c with itself, with k~ and with y~.
        centred_bias = bias - bias.mean()
        gated_square = asking.gated_square + answering.gated_square + 2 * product(asking.gated, answering.gated)
        c_square = r * (r * gated_square + 2 * (asking.gated_bias + answering.gated_bias)) + centred_bias.square().sum()
        c_key = r * (product(asking.gated, answering.key) + answering.gated_key) + answering.key_bias
        c_target = r * (product(asking.target, answering.gated) + asking.target_gated) + asking.target_bias

        square = gate * (gate * c_square + 2 * c_key) + answering.key_square
        numerator = gate * c_target + product(asking.target, answering.key)
        return numerator * (square.clamp_min(0) / width + self.norm.eps).rsqrt() + asking.offset

    def _bias(self) -> Tensor:
        """b = W_f beta1 + b_f, ``[d]``."""
        return self.mix(self.norm_sum.bias)

    def _gated(self, centred: Tensor) -> Tensor:
        """a = W_f G1 x~ for centred x, ``[*, d]``."""
        return nn.functional.linear(centred * self.norm_sum.weight, self.mix.weight)

    def _asking(self, state: State) -> _Asking:
        query = _centre(state["query"])
        gated = self._gated(query)
        centred_gated = _centre(gated)
        normed = self.norm(state["query"])
        target = _centre(normed * self.norm.weight)
        bias = _centre(self._bias())
        return _Asking(
            query=query,
            gated=centred_gated,
            target=target,
            query_square=query.square().sum(-1),
            gate=gated @ self.gate.weight[0],
            gated_square=centred_gated.square().sum(-1),
            gated_bias=(centred_gated * bias).sum(-1),
            target_gated=(target * centred_gated).sum(-1),
            target_bias=(target * bias).sum(-1),
            offset=(normed * self.norm.bias).sum(-1),
        )

    def _answering(self, state: State) -> _Answering:
        pooled, key = _centre(state["pooled"]), _centre(state["key"])
        gated = self._gated(pooled)
        centred_gated = _centre(gated)
        bias = _centre(self._bias())
        return _Answering(
            pooled=pooled,
            gated=centred_gated,
            key=key,
            pooled_square=pooled.square().sum(-1),
            gate=gated @ self.gate.weight[0],
            gated_square=centred_gated.square().sum(-1),
            gated_bias=centred_gated @ bias,
            gated_key=(centred_gated * key).sum(-1),
            key_square=key.square().sum(-1),
            key_bias=key @ bias,
        )


def _centre(vectors: Tensor) -> Tensor:
    return vectors - vectors.mean(dim=-1, keepdim=True)
