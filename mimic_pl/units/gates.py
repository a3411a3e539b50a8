"""The pairwise part of VDLU's dual gate: five products and some twenty scalar operations per pair."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimic_pl.units.kernel_choice import Kernel, uses_triton


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


def dual_gate(
    query_side: QuerySide,
    key_side: KeySide,
    gate_bias: Tensor,
    bias_square: Tensor,
    norm_sum_eps: float,
    norm_eps: float,
    kernel: Kernel = "auto",
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

    Returns:
        ``[queries, keys]``, differentiable in every tensor.

    Raises:
        ConfigError: The Triton kernel is requested where it cannot run.
    """
    # Scalars of the query side become columns, to broadcast against the keys.
    columns = (tensor if tensor.ndim == 2 else tensor.unsqueeze(-1) for tensor in query_side)
    sides = (*columns, *key_side, gate_bias, bias_square)
    if uses_triton(kernel, query_side.query):
        scores: Tensor = _FusedDualGate.apply(norm_sum_eps, norm_eps, *sides)
        return scores
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
    spread = _spread(_all_products, query_side.query, query_square, key_side.pooled, key_side.pooled_square)
    return torch.tanh((gate + key_side.gate) * (spread + norm_sum_eps).rsqrt() + gate_bias)


def _all_products(left: Tensor, right: Tensor) -> Tensor:
    return left @ right.T


def _aligned_products(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=-1)


def _spread(
    product: Callable[[Tensor, Tensor], Tensor],
    query: Tensor,
    query_square: Tensor,
    pooled: Tensor,
    pooled_square: Tensor,
) -> Tensor:
    """Variance of p + q over the width."""
    return (query_square + pooled_square + 2 * product(query, pooled)).clamp_min(0) / query.shape[-1]


def _dual_gate(
    product: Callable[[Tensor, Tensor], Tensor], norm_sum_eps: float, norm_eps: float, *sides: Tensor
) -> Tensor:
    """The dual gate in torch operations."""
    query, q_gated, target, query_square, q_gate, q_gated_square, q_gated_bias, target_gated, target_bias, offset = (
        sides[:10]
    )
    pooled, gated, key, pooled_square, gate, gated_square, gated_bias, gated_key, key_square, key_bias = sides[10:20]
    gate_bias, bias_square = sides[20:]
    width = query.shape[-1]

    r = (_spread(product, query, query_square, pooled, pooled_square) + norm_sum_eps).rsqrt()  # 1 / s
    gate_value = torch.tanh((q_gate + gate) * r + gate_bias)

    # Products of the centred c with itself, with k~ and with y~.
    square = q_gated_square + gated_square + 2 * product(q_gated, gated)
    c_square = r * (r * square + 2 * (q_gated_bias + gated_bias)) + bias_square
    c_key = r * (product(q_gated, key) + gated_key) + key_bias
    c_target = r * (product(target, gated) + target_gated) + target_bias

    norm = gate_value * (gate_value * c_square + 2 * c_key) + key_square
    numerator = gate_value * c_target + product(target, key)
    return numerator * (norm.clamp_min(0) / width + norm_eps).rsqrt() + offset


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
