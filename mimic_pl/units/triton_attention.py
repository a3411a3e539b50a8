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
"""Maximum entities per tile: the minimum height of a tensor core product."""

_MENTIONS = 64
"""Mentions per program and tile of entities, enough to make the cost of loading the tile negligible."""

_MAX_ROWS = 128
"""Rows of a tile: three entities of 40 tokens. Compiled for an H100, a 16-bit tile takes 60 kB of shared memory and 200
registers in each of 128 threads, so two run per multiprocessor and overlap one's exponentials with the other's
products. 256 rows would read keys half as often but leave room for one; in float32, 128 rows already take 168 kB."""

_MAX_SIZE = 256
"""Maximum tokens and width; no larger tile is tried."""

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernels run in Triton's interpreter, which lacks bfloat16 products: they use float32 there."""

_fitting_rows: dict[tuple[object, ...], int] = {}
"""Rows of the tile that fits this GPU's shared memory, by device, dtypes and sizes; 0 if none does."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _piece(base, rows, row_ok, columns, WIDTH: tl.constexpr, TYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Load rows of a matrix of width WIDTH as TYPE, zero-padded: ``[rows, columns]``."""
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

    The tile is PER_TILE whole entities, one token per row. The mean over an entity's tokens is a product with the
    row-to-entity assignment matrix, because rows of a tile can only be summed in powers of two. Width and mention
    tokens are each split in two pieces, 96 into 64 + 32 and 40 into 32 + 16, since single powers of two would be 128
    and 64. The programs of all entities for the same mentions run consecutively, so that keys and values come from the
    L2 cache.
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
    # A non-finite query makes only its own entity's scores NaN, not those of other entities in the tile.
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

    Float32 products use three TF32 products each, as accurate as float32, or one where
    ``torch.set_float32_matmul_precision`` allows TF32. 16-bit products accumulate in float32; the attention weights are
    averaged in float16, which is finer than bfloat16 between 0 and 1.

    Args:
        query: ``[entities, entity tokens, d]``, float32, bfloat16 or float16.
        key: ``[mentions, mention tokens, d]``, as ``query``.
        value: ``[mentions, mention tokens, d]``.
        gain: ``[entities, d]``, float32.
        weight: 0 for padding, ``[entities, entity tokens]``; all other tokens have equal weight.
        key_mask: 0 for padding, ``[mentions, mention tokens]``.
        eps: The norm's epsilon.

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
    min_rows = max(16, triton.next_power_of_2(entity_tokens))
    # Before Hopper a tile's queries are kept in registers, which 128 rows of width 96 overflow.
    max_rows = _MAX_ROWS if INTERPRETED or torch.cuda.get_device_capability(query.device) >= (9, 0) else _MAX_ROWS // 2
    cache_key = (query.device, query.dtype, value.dtype, entity_tokens, mention_tokens, width)
    rows = max(min_rows, min(max_rows, triton.next_power_of_2(_SEGMENTS * entity_tokens)))
    rows = _fitting_rows.get(cache_key, 0 if max(entity_tokens, mention_tokens, width) > _MAX_SIZE else rows)
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
            rows = rows // 2 if rows > min_rows else 0
            _fitting_rows[cache_key] = rows
        else:
            return scores
    return None


def _two_pieces(size: int) -> tuple[int, int]:
    """Two powers of two, at least 16 or 0, that cover ``size`` with the least waste: 32 + 16 for 40, 64 + 0 for 60."""
    whole = max(16, triton.next_power_of_2(size))
    rest = max(16, triton.next_power_of_2(max(1, size - whole // 2)))
    return (whole, 0) if whole == 16 or whole // 2 + rest >= whole else (whole // 2, rest)
