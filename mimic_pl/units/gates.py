"""The pairwise part of VDLU's dual gate: five products and some twenty scalar operations a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimic_pl.units.kernel_choice import Kernel, uses_triton

if TYPE_CHECKING:
    from mimic_pl.units.vdlu import _Answering, _Asking


def dual_gate(
    asking: _Asking,
    answering: _Answering,
    gate_bias: Tensor,
    bias_square: Tensor,
    norm_sum_eps: float,
    norm_eps: float,
    kernel: Kernel = "auto",
) -> Tensor:
    """f of one direction for every pair; :class:`mimic_pl.units.vdlu.DualGate` has the derivation.

    Args:
        asking: Query side, vectors ``[queries, d]`` and columns ``[queries, 1]``.
        answering: Key side, vectors ``[keys, d]`` and rows ``[keys]``.
        gate_bias: w . b + b_g, a scalar.
        bias_square: |b~|^2, a scalar.
        norm_sum_eps: What the first norm adds to the variance.
        norm_eps: What the second norm adds to the variance.
        kernel: Implementation of the forward pass. The fused one keeps no ``[queries, keys]`` tensor but the result;
            its backward pass computes the twenty again in torch.

    Returns:
        ``[queries, keys]``, differentiable in every tensor.

    Raises:
        ConfigError: The Triton kernel is asked for where it can not run.
    """
    sides = (*asking, *answering, gate_bias, bias_square)
    if uses_triton(kernel, asking.query):
        scores: Tensor = _FusedDualGate.apply(norm_sum_eps, norm_eps, *sides)
        return scores
    return _dual_gate(norm_sum_eps, norm_eps, *sides)


def _dual_gate(norm_sum_eps: float, norm_eps: float, *sides: Tensor) -> Tensor:
    """The algebra, in torch's operations."""
    query, q_gated, target, query_square, q_gate, q_gated_square, q_gated_bias, target_gated, target_bias, offset = (
        sides[:10]
    )
    pooled, gated, key, pooled_square, gate, gated_square, gated_bias, gated_key, key_square, key_bias = sides[10:20]
    gate_bias, bias_square = sides[20:]
    width = query.shape[-1]

    spread = (query_square + pooled_square + 2 * (query @ pooled.T)).clamp_min(0) / width
    r = (spread + norm_sum_eps).rsqrt()  # 1 / s
    opening = torch.tanh((q_gate + gate) * r + gate_bias)

    # Products of the centred c with itself, with k~ and with y~.
    square = q_gated_square + gated_square + 2 * (q_gated @ gated.T)
    c_square = r * (r * square + 2 * (q_gated_bias + gated_bias)) + bias_square
    c_key = r * (q_gated @ key.T + gated_key) + key_bias
    c_target = r * (target @ gated.T + target_gated) + target_bias

    norm = opening * (opening * c_square + 2 * c_key) + key_square
    product = opening * c_target + target @ key.T
    return product * (norm.clamp_min(0) / width + norm_eps).rsqrt() + offset


class _FusedDualGate(torch.autograd.Function):
    """The Triton kernel forward, the torch algebra backward."""

    @staticmethod
    def forward(ctx: Any, norm_sum_eps: float, norm_eps: float, *sides: Tensor) -> Tensor:
        from mimic_pl.units.triton_gates import dual_gate as fused

        ctx.save_for_backward(*sides)
        ctx.eps = norm_sum_eps, norm_eps
        return fused(norm_sum_eps, norm_eps, *sides)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        # Sides of several types, as autocast leaves them, meet in the type of the scores.
        sides = tuple(side.detach().to(grad.dtype).requires_grad_() for side in ctx.saved_tensors)
        with torch.enable_grad(), torch.autocast(grad.device.type, enabled=False):
            scores = _dual_gate(*ctx.eps, *sides)
        gradients = torch.autograd.grad(scores, sides, grad)
        return None, None, *(g.to(side.dtype) for g, side in zip(gradients, ctx.saved_tensors, strict=True))
