"""The pairwise part of VDLU's dual gate: five products and some twenty scalar operations per pair."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimic_pl.units.kernel_choice import Kernel, uses_triton

Product = Callable[[Tensor, Tensor], Tensor]
"""Products of vectors of the query side with vectors of the key side."""


class QuerySide(NamedTuple):
    """Query side of a direction: vectors ``[queries, d]`` and scalars ``[queries]``; ~ means centred over d."""

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

    def rows(self, part: slice) -> QuerySide:
        """Some of the queries."""
        return QuerySide(*(tensor[part] for tensor in self))


class KeySide(NamedTuple):
    """Key side of a direction: vectors ``[keys, d]`` and scalars ``[keys]``."""

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

    def rows(self, part: slice) -> KeySide:
        """Some of the keys."""
        return KeySide(*(tensor[part] for tensor in self))


def dual_gate(
    query_side: QuerySide,
    key_side: KeySide,
    gate_bias: Tensor,
    bias_square: Tensor,
    norm_sum_eps: float,
    norm_eps: float,
    kernel: Kernel = "auto",
    by_key: bool = False,
) -> Tensor:
    """f of one direction for every pair; :class:`mimic_pl.units.vdlu.DualGate` has the derivation.

    Args:
        query_side: Query side.
        key_side: Key side.
        gate_bias: w . b + b_g, a scalar.
        bias_square: |b~|^2, a scalar.
        norm_sum_eps: Epsilon of the first norm.
        norm_eps: Epsilon of the second norm.
        kernel: Implementation of the forward pass. The fused one stores no ``[queries, keys]`` tensor but the result;
            its backward pass recomputes the others in torch.
        by_key: Return ``[keys, queries]``.

    Returns:
        ``[queries, keys]``, differentiable in every tensor.

    Raises:
        ConfigError: The Triton kernel is requested where it cannot run.
    """
    fused = uses_triton(kernel, query_side.query)
    if by_key and not fused:
        sides = (*query_side, *_columns(key_side), gate_bias, bias_square)
        return _dual_gate(_all_products_by_right, norm_sum_eps, norm_eps, *sides)
    sides = (*_columns(query_side), *key_side, gate_bias, bias_square)
    if fused:
        scores: Tensor = _FusedDualGate.apply(norm_sum_eps, norm_eps, *sides)
        return scores.T if by_key else scores
    return _dual_gate(_all_products, norm_sum_eps, norm_eps, *sides)


def dual_gate_pairs(
    query_side: QuerySide,
    key_side: KeySide,
    gate_bias: Tensor,
    bias_square: Tensor,
    norm_sum_eps: float,
    norm_eps: float,
) -> Tensor:
    """The same for aligned pairs, ``[pairs]``: query i with key i."""
    return _dual_gate(_aligned_products, norm_sum_eps, norm_eps, *query_side, *key_side, gate_bias, bias_square)


def gate_values(query_side: QuerySide, key_side: KeySide, gate_bias: Tensor, norm_sum_eps: float) -> Tensor:
    """tanh(w . c + b_g) of one direction for every pair, ``[queries, keys]``."""
    query_square, gate = query_side.query_square[:, None], query_side.gate[:, None]
    sides = query_side.query, query_square, key_side.pooled, key_side.pooled_square
    return torch.tanh((gate + key_side.gate) * _inverse_deviation(_all_products, *sides, norm_sum_eps) + gate_bias)


def _columns(side: QuerySide | KeySide) -> Iterator[Tensor]:
    """Scalars of a side as columns, to broadcast against those of the other."""
    return (tensor if tensor.ndim == 2 else tensor.unsqueeze(-1) for tensor in side)


def _all_products(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.T


def _all_products_by_right(left: Tensor, right: Tensor) -> Tensor:
    return right @ left.T


def _aligned_products(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=-1)


def _inverse_deviation(
    product: Product,
    query: Tensor,
    query_square: Tensor,
    pooled: Tensor,
    pooled_square: Tensor,
    eps: float,
) -> Tensor:
    """1 / s of p + q over the width."""
    width = query.shape[-1]
    variance = _sum_product(product, query / width, query_square / width + eps, pooled, pooled_square / width)
    into = None if torch.is_grad_enabled() else variance
    return torch.rsqrt(torch.clamp_min(variance, eps, out=into), out=into)


def _sum_product(product: Product, left: Tensor, of_left: Tensor, right: Tensor, of_right: Tensor) -> Tensor:
    """2 left.right + of_left + of_right, as one product: sums over all pairs cost as much as products."""
    of_left, of_right = of_left.view(-1, 1), of_right.view(-1, 1)
    one = torch.ones_like(of_left), torch.ones_like(of_right)
    return product(torch.cat((2 * left, of_left, one[0]), dim=1), torch.cat((right, one[1], of_right), dim=1))


def _dual_gate(product: Product, norm_sum_eps: float, norm_eps: float, *sides: Tensor) -> Tensor:
    """The dual gate in torch operations; without gradients, results take the place of what is no longer needed."""
    query, q_gated, target, query_square, q_gate, q_gated_square, q_gated_bias, target_gated, target_bias, offset = (
        sides[:10]
    )
    pooled, gated, key, pooled_square, gate, gated_square, gated_bias, gated_key, key_square, key_bias = sides[10:20]
    gate_bias, bias_square = sides[20:]
    needed = torch.is_grad_enabled()

    def into(tensor: Tensor) -> Tensor | None:
        return None if needed else tensor

    width, least = query.shape[-1], query.shape[-1] * norm_eps
    r = _inverse_deviation(product, query, query_square, pooled, pooled_square, norm_sum_eps)
    logit = q_gate + gate
    logit = torch.addcmul(gate_bias, logit, r, out=into(logit))
    gate_value = torch.tanh(logit, out=into(logit))
    share = torch.mul(gate_value, r, out=into(r))

    # |gate c + k|^2 and its product with y, for the centred c = (a_p + a_q) / s + b.
    square = _sum_product(product, q_gated, q_gated_square, gated, gated_square)
    with_key = product(2 * q_gated, key)
    with_key = torch.add(with_key, 2 * gated_key, out=into(with_key))
    inner = torch.addcmul(with_key, share, square, out=into(with_key))
    inner = torch.addcmul(inner, gate_value, 2 * q_gated_bias + 2 * gated_bias, out=into(inner))
    norm = torch.addcmul(2 * key_bias, gate_value, bias_square, out=into(square))
    norm = torch.addcmul(key_square + least, gate_value, norm, out=into(norm))
    norm = torch.addcmul(norm, share, inner, out=into(norm))
    norm = torch.clamp_min(norm, least, out=into(norm))
    target, target_gated, target_bias = (
        math.sqrt(width) * of_target for of_target in (target, target_gated, target_bias)
    )
    with_target = product(target, gated)
    with_target = torch.add(with_target, target_gated, out=into(with_target))
    numerator = product(target, key)
    numerator = torch.addcmul(numerator, gate_value, target_bias, out=into(numerator))
    numerator = torch.addcmul(numerator, share, with_target, out=into(numerator))
    return torch.addcmul(offset, numerator, torch.rsqrt(norm, out=into(norm)), out=into(numerator))


class _FusedDualGate(torch.autograd.Function):
    """The Triton kernel forward, torch operations backward."""

    @staticmethod
    def forward(ctx: Any, norm_sum_eps: float, norm_eps: float, *sides: Tensor) -> Tensor:
        from mimic_pl.units.triton_gates import dual_gate as fused

        ctx.save_for_backward(*sides)
        ctx.eps = norm_sum_eps, norm_eps
        return fused(norm_sum_eps, norm_eps, *sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Under autocast the sides have different dtypes; compute in that of the scores.
        sides = tuple(side.detach().to(grad.dtype).requires_grad_() for side in ctx.saved_tensors)
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            scores = _dual_gate(_all_products, *ctx.eps, *sides)
        gradients = torch.autograd.grad(scores, sides, grad)
        return None, None, *(g.to(side.dtype) for g, side in zip(gradients, ctx.saved_tensors, strict=True))
