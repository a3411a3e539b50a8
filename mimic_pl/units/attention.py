"""TGLU's global-to-local term for all pairs, forward and backward, without storing a tensor of pairs x tokens."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mimic_pl.units.cone import centre
from mimic_pl.units.kernel_choice import Kernel, uses_triton

LOGITS_AT_ONCE_CPU = 1 << 20
"""Attention logits per block on the CPU: 4 MB in float32, which stays in the caches between two passes."""

LOGITS_AT_ONCE_GPU = 1 << 26
"""Attention logits per block on other devices: 256 MB in float32, enough to keep them busy."""

_SAFE_LOGIT = 100.0
"""Base-2 logits within this bound need no maximum subtracted: 2^-100 and sums of 2^100 are normal float32 numbers."""


def global_to_local(
    query: Tensor,
    context: Tensor,
    key: Tensor,
    value: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
    kernel: Kernel = "auto",
) -> Tensor:
    """``c_e . LayerNorm(mean over the entity's tokens of A V)`` with ``A = softmax(Q K^T / sqrt(d))`` for every pair.

    The mean is linear, so the attention weights are averaged before they are multiplied with V. Pairs are processed in
    blocks, and the backward pass recomputes a block's attention: only the arguments are saved for it.

    Only Q K^T, nearly all of the arithmetic, is computed in the dtype of ``query`` and ``key`` (under autocast, in
    autocast's dtype); its output, softmax, sums and the norm are float32, or float64 for float64.

    Args:
        query: Q of the entities, ``[entities, entity tokens, d]``.
        context: c_e of the entities, ``[entities, d]``.
        key: K of the mentions, ``[mentions, mention tokens, d]``.
        value: V of the mentions, ``[mentions, mention tokens, d]``.
        norm_weight: Weight of the LayerNorm, ``[d]``.
        norm_bias: Bias of the LayerNorm, ``[d]``.
        eps: The LayerNorm's epsilon.
        query_mask: 1 for a token, 0 for padding, ``[entities, entity tokens]``; padding is excluded from the mean. Each
            entity has at least one real token. None means no padding.
        key_mask: The same for the mentions, ``[mentions, mention tokens]``; padding is not attended to.
        kernel: Implementation of the forward pass.

    Returns:
        ``[mentions, entities]``, float32 or float64, differentiable (once) in every floating-point tensor.

    Raises:
        ConfigError: The Triton kernel is requested where it cannot run.

    Example:
        >>> q, k, v = torch.randn(7, 40, 96), torch.randn(3, 40, 96), torch.randn(3, 40, 96)
        >>> global_to_local(q, torch.randn(7, 96), k, v, torch.ones(96), torch.zeros(96), eps=1e-5).shape
        torch.Size([3, 7])
    """
    device = query.device.type
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else query.dtype
    if query.dtype == torch.float64:
        product = torch.float64  # as autocast does
    query, key = query.to(product), key.to(product)
    fused = uses_triton(kernel, query)
    with torch.autocast(device, enabled=False):
        context = context.to(_wide_dtype(query))
        gain = context * norm_weight
        weight = None if query_mask is None else _mean_weight(query_mask, gain.dtype)
        cosine = _NormedProduct.apply(query, key, value, gain, weight, key_mask, eps, fused)
        return cosine + context @ norm_bias.to(context.dtype)


@torch.no_grad()
def global_to_local_pairs(
    query: Tensor,
    context: Tensor,
    key: Tensor,
    value: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    query_mask: Tensor | None = None,
    key_mask: Tensor | None = None,
) -> Tensor:
    """The same term for selected pairs, ``[pairs]``: row i of every argument belongs to pair i. Not differentiable.

    A pair costs two to three times as much as in :func:`global_to_local`, whose products are larger: use it when few
    pairs remain. With float64 arguments it resolves ties that float32 leaves undecided.

    Args:
        query: Q of each pair's entity, ``[pairs, entity tokens, d]``.
        context: c_e of each pair's entity, ``[pairs, d]``.
        key: K of each pair's mention, ``[pairs, mention tokens, d]``.
        value: V of each pair's mention, ``[pairs, mention tokens, d]``.
        norm_weight: Weight of the LayerNorm, ``[d]``.
        norm_bias: Bias of the LayerNorm, ``[d]``.
        eps: The LayerNorm's epsilon.
        query_mask: Real tokens of each pair's entity, ``[pairs, entity tokens]``.
        key_mask: Real tokens of each pair's mention, ``[pairs, mention tokens]``.

    Example:
        >>> q, k, v = torch.randn(5, 40, 96), torch.randn(5, 40, 96), torch.randn(5, 40, 96)
        >>> global_to_local_pairs(q, torch.randn(5, 96), k, v, torch.ones(96), torch.zeros(96), eps=1e-5).shape
        torch.Size([5])
    """
    num_pairs, entity_tokens, _ = query.shape
    block = max(1, _logits_at_once(query) // (entity_tokens * key.shape[1]))
    wide = _wide_dtype(query)
    scores = query.new_empty(num_pairs, dtype=wide)
    with torch.autocast(query.device.type, enabled=False):
        for start in range(0, num_pairs, block):
            pairs = slice(start, start + block)
            masks = (None if mask is None else mask[pairs] for mask in (query_mask, key_mask))
            mean = mean_attention_pairs(query[pairs], key[pairs], *masks)
            local = centre(torch.bmm(mean[:, None], value[pairs].to(wide)).squeeze(1))
            contexts = context[pairs].to(wide)
            inverse = _inverse_deviation(local, eps)
            scores[pairs] = (local * contexts * norm_weight).sum(-1) * inverse + contexts @ norm_bias.to(wide)
    return scores


@torch.no_grad()
def mean_attention_pairs(
    query: Tensor, key: Tensor, query_mask: Tensor | None = None, key_mask: Tensor | None = None
) -> Tensor:
    """A of selected pairs, averaged over the entity's tokens: the attention weight of each token of the mention.

    Args:
        query: Q of each pair's entity, ``[pairs, entity tokens, d]``.
        key: K of each pair's mention, ``[pairs, mention tokens, d]``.
        query_mask: Real tokens of each pair's entity, ``[pairs, entity tokens]``; None means all.
        key_mask: Real tokens of each pair's mention, ``[pairs, mention tokens]``.

    Returns:
        ``[pairs, mention tokens]``, rows that sum to 1, float32 or float64.
    """
    wide = _wide_dtype(query)
    with torch.autocast(query.device.type, enabled=False):
        keys = key.to(query.dtype).mT
        logits = torch.baddbmm(query.new_empty(()), query, keys, beta=0, alpha=_logit_scale(query))
        attention = _softmax(logits.to(wide), None if key_mask is None else key_mask[:, None])
        return _mean(attention[:, :, None], None if query_mask is None else _mean_weight(query_mask, wide)).squeeze(1)


class _NormedProduct(torch.autograd.Function):
    """``g_e . u~ / sqrt(|u~|^2 / d + eps)`` for every pair, with ``u~`` the attended value, centred over its width.

    With P = softmax(Q K^T / sqrt(d)) and w = sum_s weight_s P_s, u~ = w V~. Backward, from the gradient of u~:
    dw = du~ V~^T, dP_s = weight_s dw, dS = P (dP - sum_t P dP), dQ = dS K / sqrt(d) and dK = dS^T Q / sqrt(d).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        gain: Tensor,
        weight: Tensor | None,
        key_mask: Tensor | None,
        eps: float,
        fused: bool,
    ) -> Tensor:
        ctx.save_for_backward(query, key, value, gain, weight, key_mask)
        ctx.eps = eps
        if fused:
            from mimic_pl.units.triton_attention import normed_product

            product = normed_product(query, key, value, gain, weight, key_mask, eps)
            if product is not None:
                return product
            warnings.warn(
                f"TGLU's Triton kernel has no tile for {query.shape[1]} x {key.shape[1]} tokens of width "
                f"{key.shape[2]} in {query.dtype} that fits this GPU, so torch computes it instead. Set "
                'kernel = "torch" to silence this warning.',
                stacklevel=2,
            )
        centred = centre(value.to(gain.dtype))
        scores = gain.new_empty(len(key), len(query))
        for mentions, entities in _blocks(query, key):
            attention = _attention(query[entities], key[mentions], _rows(key_mask, mentions))
            mean = _mean(attention, _rows(weight, entities))
            local = torch.bmm(mean.transpose(0, 1), centred[mentions])  # [mentions, entities, d]
            product = (local * gain[entities]).sum(-1)
            scores[mentions, entities] = product * _inverse_deviation(local, eps)
        return scores

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, gain, weight, key_mask = ctx.saved_tensors
        wide, width = gain.dtype, query.shape[-1]
        with torch.autocast(query.device.type, enabled=False):
            centred = centre(value.to(wide))
            d_query, d_key = torch.zeros_like(query, dtype=wide), torch.zeros_like(key, dtype=wide)
            d_value, d_gain = torch.zeros_like(centred), torch.zeros_like(gain)
            for mentions, entities in _blocks(query, key):
                queries, keys, values = query[entities], key[mentions], centred[mentions]
                weights = _rows(weight, entities)
                attention = _attention(queries, keys, _rows(key_mask, mentions))
                mean = _mean(attention, weights).transpose(0, 1)  # [mentions, entities, mention tokens]
                local = torch.bmm(mean, values)
                gains, inverse = gain[entities], _inverse_deviation(local, ctx.eps)
                scaled = grad[mentions, entities] * inverse  # [mentions, entities]
                shrink = scaled * inverse.square() * (local * gains).sum(-1) / width
                d_local = scaled[..., None] * gains - shrink[..., None] * local
                d_gain[entities] += (scaled[..., None] * local).sum(dim=0)
                d_value[mentions] += torch.bmm(mean.mT, d_local)
                d_mean = torch.bmm(d_local, values.mT).transpose(0, 1)[:, None]  # [entities, 1, mentions, tokens]
                # Gradient of the logits, still without the entity tokens' weights.
                d_logits = attention * d_mean
                d_logits.addcmul_(attention, d_logits.sum(-1, keepdim=True), value=-1)
                scale = 1 / math.sqrt(width)
                if weights is None:
                    scale /= queries.shape[1]
                else:
                    d_logits.mul_(weights[:, :, None, None])
                flat = d_logits.view(queries.shape[0] * queries.shape[1], -1).to(query.dtype)
                _add_product(d_query[entities], flat, keys, scale)
                _add_product(d_key[mentions], flat.T, queries, scale)
            d_value = centre(d_value)
        return d_query.to(query.dtype), d_key.to(key.dtype), d_value.to(value.dtype), d_gain, None, None, None, None


def _blocks(query: Tensor, key: Tensor) -> Iterator[tuple[slice, slice]]:
    """Mentions and entities of each block: blocks are roughly square and of about the same size."""
    num_entities, entity_tokens, _ = query.shape
    num_mentions, mention_tokens, _ = key.shape
    pairs = max(1, _logits_at_once(query) // (entity_tokens * mention_tokens))
    mentions = min(num_mentions, max(math.isqrt(pairs), pairs // max(1, num_entities)))
    entities = max(1, pairs // max(1, mentions))
    for rows in _even_slices(num_mentions, mentions):
        for columns in _even_slices(num_entities, entities):
            yield rows, columns


def _even_slices(total: int, largest: int) -> Iterator[slice]:
    count = -(-total // largest) if total else 0
    for i in range(count):
        yield slice(i * total // count, (i + 1) * total // count)


def _logits_at_once(tensor: Tensor) -> int:
    return LOGITS_AT_ONCE_CPU if _on_cpu(tensor) else LOGITS_AT_ONCE_GPU


def _attention(query: Tensor, key: Tensor, key_mask: Tensor | None) -> Tensor:
    """softmax(Q K^T / sqrt(d)), ``[entities, entity tokens, mentions, mention tokens]``, from one matrix product."""
    queries, keys, scale = query.flatten(0, 1), key.flatten(0, 1), _logit_scale(query)
    unused = query.new_empty(())  # beta = 0: it is not read
    logits = torch.addmm(unused, queries, keys.T, beta=0, alpha=scale).view(*query.shape[:2], *key.shape[:2])
    bound = math.inf
    # Elsewhere fetching it would synchronize; for few mentions, the logits themselves are fewer numbers.
    if _on_cpu(logits) and logits.numel() > queries.numel():
        norms = (torch.linalg.vector_norm(tokens, dim=-1, dtype=_wide_dtype(query)).max() for tokens in (queries, keys))
        bound = scale * math.prod(norm.item() for norm in norms)
    return _softmax(logits.to(_wide_dtype(query)), key_mask, bound)


def _logit_scale(query: Tensor) -> float:
    """Factor that turns Q K^T into the logits that :func:`_softmax` expects on this device."""
    scale = 1 / math.sqrt(query.shape[-1])
    return scale / math.log(2) if _on_cpu(query) else scale


def _softmax(logits: Tensor, mask: Tensor | None, bound: float = math.inf) -> Tensor:
    """Softmax over the last dimension; on the CPU in place, of base-2 logits whose magnitude is at most ``bound``.

    On the CPU, torch's exp2 takes a third of the time of exp, so exp2, a sum and an in-place product take half the time
    of torch.softmax. A row's maximum costs more than exp2 and is subtracted only if a power could overflow or all
    powers of a row could underflow.
    """
    if not _on_cpu(logits):
        return torch.softmax(logits if mask is None else logits.masked_fill(mask.eq(0), -torch.inf), dim=-1)
    if not bound < _SAFE_LOGIT:  # too large or NaN
        bound = torch.stack(logits.aminmax()).abs().max().item()
    if mask is not None:
        logits.masked_fill_(mask.eq(0), -torch.inf)
    if not bound < _SAFE_LOGIT:
        logits.sub_(logits.amax(dim=-1, keepdim=True))
    powers = logits.exp2_()
    return powers.mul_(powers.sum(dim=-1, keepdim=True).reciprocal_())


def _mean(attention: Tensor, weight: Tensor | None) -> Tensor:
    """Mean over the entity's tokens, ``[entities, mentions, mention tokens]``."""
    if weight is None:
        return attention.mean(dim=1)
    return torch.bmm(weight[:, None], attention.flatten(2)).view(len(weight), *attention.shape[2:])


def _mean_weight(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of a mean over the real tokens, ``[entities, entity tokens]``."""
    real = mask.to(dtype)
    return real / real.sum(dim=1, keepdim=True)


def _inverse_deviation(centred: Tensor, eps: float) -> Tensor:
    return (centred.square().mean(dim=-1) + eps).rsqrt()


def _add_product(into: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    """Add scale * left @ right to ``into``, ``[items, tokens, d]``; left and right may have a lower precision."""
    flat, right = into.view(-1, into.shape[-1]), right.flatten(0, 1)
    if left.dtype == into.dtype:
        flat.addmm_(left, right, alpha=scale)
    else:
        flat.add_(left @ right, alpha=scale)


def _on_cpu(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _wide_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype of softmax, sums and norm: float32, or float64 for float64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]
