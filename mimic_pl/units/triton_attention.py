"""TGLU's global-to-local term as one Triton kernel. Imported only where it runs: Triton is optional."""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.errors import OutOfResources

_SEGMENTS = 16
"""Most entities of a tile: the least height of a tensor core's product."""

_MENTIONS = 64
"""Mentions that a program goes through with its tile of entities, so that loading the tile does not count."""

_MOST_ROWS = 128
"""Rows of a tile, three entities of 40 tokens. Compiled for an H100, a 16-bit tile takes 60 kB of shared memory and 200
registers of 128 threads, so that two run on a multiprocessor, one's exponentials beside the other's products. 256 rows
would read keys half as often and leave room for one; in float32 128 rows are 168 kB already."""

_LONGEST = 256
"""Tokens and width at most; no tile of more is tried."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels below run in Triton's interpreter, which has no products of bfloat16: they are float32 there."""

_fitting_rows: dict[tuple[object, ...], int] = {}
"""Rows of the tile that fits this GPU's shared memory, by device, types and sizes; 0 if none does."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _piece(base, rows, row_ok, columns, WIDTH: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of a matrix of width WIDTH as TYPE, zeros outside: ``[rows, columns]``."""
    inside = row_ok[:, None] & (columns < WIDTH)[None, :]
    return tl.load(base + rows[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0).to(TYPE)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _normed_product(  # type: ignore[no-untyped-def]
    query,
    key,
    value,
    gain,
    weight,
    key_mask,
    scores,
    num_entities,
    num_mentions,
    entity_tokens,
    mention_tokens,
    scale,
    eps,
    WIDTH: tl.constexpr,
    PER_TILE: tl.constexpr,
    SEGMENTS: tl.constexpr,
    ROWS: tl.constexpr,
    MENTIONS: tl.constexpr,
    D1: tl.constexpr,
    D2: tl.constexpr,
    T1: tl.constexpr,
    T2: tl.constexpr,
    HAS_WEIGHT: tl.constexpr,
    HAS_KEY_MASK: tl.constexpr,
    TYPE: tl.constexpr,
    WEIGHT_TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of one tile of entities with MENTIONS mentions.

    The tile is PER_TILE whole entities, one token a row. The mean over an entity's tokens is a product with the
    matrix that says which row is whose, because rows of a tile can only be summed in powers of two. Width and mention
    tokens are worked on as two pieces each, 96 as 64 + 32 and 40 as 32 + 16, since one power of two would be 128 and
    64. All of the entities' programs for the same mentions run one after the other, so that keys and values come from
    the level-2 cache.
    """
    tiles = tl.cdiv(num_entities, PER_TILE)
    first = (tl.program_id(0) % tiles) * PER_TILE
    first_mention = (tl.program_id(0) // tiles) * MENTIONS

    rows = tl.arange(0, ROWS)
    owner = rows // entity_tokens
    row_ok = (owner < PER_TILE) & (first + owner < num_entities)
    d1 = tl.arange(0, D1)
    queries = query + first.to(tl.int64) * entity_tokens * WIDTH
    q1 = _piece(queries, rows, row_ok, d1, WIDTH, TYPE)
    size = tl.sum(tl.abs(q1.to(tl.float32)), axis=1)
    if D2 > 0:
        d2 = D1 + tl.arange(0, D2)
        q2 = _piece(queries, rows, row_ok, d2, WIDTH, TYPE)
        size += tl.sum(tl.abs(q2.to(tl.float32)), axis=1)
    # A query that is not finite makes its own entity's scores NaN, not those of the tile's other entities.
    finite = size < float("inf")
    q1 = tl.where(finite[:, None], q1, tl.zeros_like(q1))
    if D2 > 0:
        q2 = tl.where(finite[:, None], q2, tl.zeros_like(q2))

    segments = tl.arange(0, SEGMENTS)
    belongs = (owner[None, :] == segments[:, None]) & row_ok[None, :]
    if HAS_WEIGHT:
        real = tl.load(weight + first.to(tl.int64) * entity_tokens + rows, mask=row_ok, other=0.0) > 0
        belongs = belongs & real[None, :]
    count = tl.sum(belongs.to(tl.float32), axis=1)
    damage = tl.sum(tl.where(belongs & (finite[None, :] == 0), float("nan"), 0.0), axis=1)
    owners = belongs.to(WEIGHT_TYPE)
    entity_ok = (segments < PER_TILE) & (first + segments < num_entities)
    gains = gain + first.to(tl.int64) * WIDTH
    g1 = _piece(gains, segments, entity_ok, d1, WIDTH, tl.float32)
    if D2 > 0:
        g2 = _piece(gains, segments, entity_ok, d2, WIDTH, tl.float32)

    t1 = tl.arange(0, T1)
    t2 = T1 + tl.arange(0, T2 if T2 > 0 else 16)
    first_token = first_mention.to(tl.int64) * mention_tokens
    results = scores + first_mention.to(tl.int64) * num_entities + first + segments
    for i in range(0, tl.minimum(MENTIONS, num_mentions - first_mention)):
        token = first_token + i * mention_tokens
        keys, values = key + token * WIDTH, value + token * WIDTH

        ok1 = t1 < mention_tokens
        x1 = tl.dot(q1, tl.trans(_piece(keys, t1, ok1, d1, WIDTH, TYPE)), input_precision=PRECISION)
        if D2 > 0:
            x1 = tl.dot(q2, tl.trans(_piece(keys, t1, ok1, d2, WIDTH, TYPE)), x1, input_precision=PRECISION)
        seen1 = ok1
        if HAS_KEY_MASK:
            seen1 = tl.load(key_mask + token + t1, mask=ok1, other=0) != 0
        x1 = tl.where(seen1[None, :], x1 * scale, float("-inf"))
        top = tl.max(x1, axis=1)
        if T2 > 0:
            ok2 = t2 < mention_tokens
            x2 = tl.dot(q1, tl.trans(_piece(keys, t2, ok2, d1, WIDTH, TYPE)), input_precision=PRECISION)
            if D2 > 0:
                x2 = tl.dot(q2, tl.trans(_piece(keys, t2, ok2, d2, WIDTH, TYPE)), x2, input_precision=PRECISION)
            seen2 = ok2
            if HAS_KEY_MASK:
                seen2 = tl.load(key_mask + token + t2, mask=ok2, other=0) != 0
            x2 = tl.where(seen2[None, :], x2 * scale, float("-inf"))
            top = tl.maximum(top, tl.max(x2, axis=1))

        p1 = tl.exp2(x1 - top[:, None])
        total = tl.sum(p1, axis=1)
        if T2 > 0:
            p2 = tl.exp2(x2 - top[:, None])
            total += tl.sum(p2, axis=1)
        inverse = 1.0 / total
        w1 = tl.dot(owners, (p1 * inverse[:, None]).to(WEIGHT_TYPE), input_precision=PRECISION) / count[:, None]
        u1 = tl.dot(w1, _piece(values, t1, ok1, d1, WIDTH, tl.float32), input_precision=PRECISION)
        if D2 > 0:
            u2 = tl.dot(w1, _piece(values, t1, ok1, d2, WIDTH, tl.float32), input_precision=PRECISION)
        if T2 > 0:
            w2 = tl.dot(owners, (p2 * inverse[:, None]).to(WEIGHT_TYPE), input_precision=PRECISION) / count[:, None]
            u1 = tl.dot(w2, _piece(values, t2, ok2, d1, WIDTH, tl.float32), u1, input_precision=PRECISION)
            if D2 > 0:
                u2 = tl.dot(w2, _piece(values, t2, ok2, d2, WIDTH, tl.float32), u2, input_precision=PRECISION)

        mean = tl.sum(u1, axis=1)
        if D2 > 0:
            mean += tl.sum(u2, axis=1)
        mean = mean / WIDTH
        u1 = tl.where((d1 < WIDTH)[None, :], u1 - mean[:, None], 0.0)
        square, product = tl.sum(u1 * u1, axis=1), tl.sum(u1 * g1, axis=1)
        if D2 > 0:
            u2 = tl.where((d2 < WIDTH)[None, :], u2 - mean[:, None], 0.0)
            square += tl.sum(u2 * u2, axis=1)
            product += tl.sum(u2 * g2, axis=1)
        result = product / tl.sqrt(square / WIDTH + eps) + damage
        tl.store(results, result, mask=entity_ok)
        results += num_entities


def normed_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    gain: Tensor,
    weight: Tensor | None,
    key_mask: Tensor | None,
    eps: float,
) -> Tensor | None:
    """``g_e . u~ / sqrt(|u~|^2 / d + eps)`` of every pair; see :func:`mimic_pl.units.attention.global_to_local`.

    Products of float32 tensors are done in three TF32 parts, which is as exact as float32, or in one where
    ``torch.set_float32_matmul_precision`` allows TF32. Those of 16-bit tensors sum in float32; the attention weights
    meet the mean as float16, which is finer than bfloat16 between 0 and 1.

    Args:
        query: ``[entities, entity tokens, d]``, float32, bfloat16 or float16.
        key: ``[mentions, mention tokens, d]``, as ``query``.
        value: ``[mentions, mention tokens, d]``.
        gain: ``[entities, d]``, float32.
        weight: 0 for padding, ``[entities, entity tokens]``; all others weigh the same.
        key_mask: 0 for padding, ``[mentions, mention tokens]``.
        eps: What the norm adds to the variance.

    Returns:
        ``[mentions, entities]``, float32; None if no tile fits this GPU's shared memory.
    """
    (num_entities, entity_tokens, width), (num_mentions, mention_tokens, _) = query.shape, key.shape
    scores = gain.new_empty(num_mentions, num_entities)
    if not scores.numel():
        return scores
    exact = query.dtype == torch.float32
    d1, d2 = _two_pieces(width)
    t1, t2 = _two_pieces(mention_tokens)
    smallest = max(16, triton.next_power_of_2(entity_tokens))
    # Before Hopper a tile's queries wait in registers, which 128 rows of 96 overflow.
    most = _MOST_ROWS if INTERPRETED or torch.cuda.get_device_capability(query.device) >= (9, 0) else _MOST_ROWS // 2
    known = (query.device, query.dtype, value.dtype, entity_tokens, mention_tokens, width)
    rows = max(smallest, min(most, triton.next_power_of_2(_SEGMENTS * entity_tokens)))
    rows = _fitting_rows.get(known, 0 if max(entity_tokens, mention_tokens, width) > _LONGEST else rows)
    precision = "tf32" if not exact or torch.get_float32_matmul_precision() != "highest" else "tf32x3"
    while rows:
        per_tile = min(_SEGMENTS, rows // entity_tokens)
        grid = (triton.cdiv(num_entities, per_tile) * triton.cdiv(num_mentions, _MENTIONS),)
        try:
            with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current device
                _normed_product[grid](
                    query.contiguous(),
                    key.contiguous(),
                    value.contiguous(),
                    gain.contiguous(),
                    gain if weight is None else weight.contiguous(),
                    gain if key_mask is None else key_mask.ne(0).to(torch.int8).contiguous(),
                    scores,
                    num_entities,
                    num_mentions,
                    entity_tokens,
                    mention_tokens,
                    1 / (math.sqrt(width) * math.log(2)),
                    eps,
                    WIDTH=width,
                    PER_TILE=per_tile,
                    SEGMENTS=_SEGMENTS,
                    ROWS=rows,
                    MENTIONS=_MENTIONS,
                    D1=d1,
                    D2=d2,
                    T1=t1,
                    T2=t2,
                    HAS_WEIGHT=weight is not None,
                    HAS_KEY_MASK=key_mask is not None,
                    TYPE=tl.float32 if exact or INTERPRETED else getattr(tl, str(query.dtype).removeprefix("torch.")),
                    WEIGHT_TYPE=tl.float32 if exact else tl.float16,
                    PRECISION=precision,
                    num_warps=8 if exact and rows >= 128 else 4,
                    num_stages=2,
                )
        except OutOfResources:
            rows = rows // 2 if rows > smallest else 0
            _fitting_rows[known] = rows
        else:
            return scores
    return None


def _two_pieces(size: int) -> tuple[int, int]:
    """Two powers of two, 16 at least or 0, that hold ``size`` with the least waste: 40 is in 32 + 16, 60 in 64 + 0."""
    whole = max(16, triton.next_power_of_2(size))
    rest = max(16, triton.next_power_of_2(max(1, size - whole // 2)))
    return (whole, 0) if whole == 16 or whole // 2 + rest >= whole else (whole // 2, rest)
