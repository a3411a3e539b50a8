"""VDLU's dual gate as one Triton kernel. Imported only where it runs: Triton is optional."""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
"""Whether the kernel runs in Triton's interpreter, which lacks bfloat16 products: it uses float32 there."""


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _dual_gate(  # type: ignore[no-untyped-def]
    query,
    query_gated,
    target,
    columns,
    pooled,
    gated,
    key,
    rows,
    scalars,
    scores,
    num_queries,
    num_keys,
    norm_sum_eps,
    norm_eps,
    WIDTH: tl.constexpr,
    TILE: tl.constexpr,
    PIECE: tl.constexpr,
    TYPE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Scores of a tile of TILE x TILE pairs: five products over pieces of the width, then scalars in registers.

    64 x 64 pairs need five accumulators of 16 kB: 80 registers in each of 256 threads.
    """
    tiles = tl.cdiv(num_keys, TILE)
    i = (tl.program_id(0) // tiles) * TILE + tl.arange(0, TILE)
    j = (tl.program_id(0) % tiles) * TILE + tl.arange(0, TILE)
    i_ok, j_ok = i < num_queries, j < num_keys
    pooled_query = tl.zeros((TILE, TILE), tl.float32)
    gated_gated = tl.zeros((TILE, TILE), tl.float32)
    gated_key = tl.zeros((TILE, TILE), tl.float32)
    target_gated = tl.zeros((TILE, TILE), tl.float32)
    target_key = tl.zeros((TILE, TILE), tl.float32)
    for start in range(0, WIDTH, PIECE):
        d = start + tl.arange(0, PIECE)
        left = i[:, None].to(tl.int64) * WIDTH + d[None, :]
        left_ok = i_ok[:, None] & (d < WIDTH)[None, :]
        right = j[None, :].to(tl.int64) * WIDTH + d[:, None]
        right_ok = j_ok[None, :] & (d < WIDTH)[:, None]
        q = tl.load(query + left, mask=left_ok, other=0.0).to(TYPE)
        a = tl.load(query_gated + left, mask=left_ok, other=0.0).to(TYPE)
        y = tl.load(target + left, mask=left_ok, other=0.0).to(TYPE)
        p = tl.load(pooled + right, mask=right_ok, other=0.0).to(TYPE)
        b = tl.load(gated + right, mask=right_ok, other=0.0).to(TYPE)
        k = tl.load(key + right, mask=right_ok, other=0.0).to(TYPE)
        pooled_query = tl.dot(q, p, pooled_query, input_precision=PRECISION)
        gated_gated = tl.dot(a, b, gated_gated, input_precision=PRECISION)
        gated_key = tl.dot(a, k, gated_key, input_precision=PRECISION)
        target_gated = tl.dot(y, b, target_gated, input_precision=PRECISION)
        target_key = tl.dot(y, k, target_key, input_precision=PRECISION)

    # One-sided scalars, in the field order of QuerySide and KeySide.
    query_square = tl.load(columns + i, mask=i_ok, other=0.0)[:, None]
    query_gate = tl.load(columns + num_queries + i, mask=i_ok, other=0.0)[:, None]
    query_gated_square = tl.load(columns + 2 * num_queries + i, mask=i_ok, other=0.0)[:, None]
    query_gated_bias = tl.load(columns + 3 * num_queries + i, mask=i_ok, other=0.0)[:, None]
    own_target_gated = tl.load(columns + 4 * num_queries + i, mask=i_ok, other=0.0)[:, None]
    target_bias = tl.load(columns + 5 * num_queries + i, mask=i_ok, other=0.0)[:, None]
    offset = tl.load(columns + 6 * num_queries + i, mask=i_ok, other=0.0)[:, None]
    pooled_square = tl.load(rows + j, mask=j_ok, other=0.0)[None, :]
    key_gate = tl.load(rows + num_keys + j, mask=j_ok, other=0.0)[None, :]
    key_gated_square = tl.load(rows + 2 * num_keys + j, mask=j_ok, other=0.0)[None, :]
    key_gated_bias = tl.load(rows + 3 * num_keys + j, mask=j_ok, other=0.0)[None, :]
    own_gated_key = tl.load(rows + 4 * num_keys + j, mask=j_ok, other=0.0)[None, :]
    key_square = tl.load(rows + 5 * num_keys + j, mask=j_ok, other=0.0)[None, :]
    key_bias = tl.load(rows + 6 * num_keys + j, mask=j_ok, other=0.0)[None, :]
    gate_bias, bias_square = tl.load(scalars), tl.load(scalars + 1)

    spread = query_square + pooled_square + 2 * pooled_query
    spread = tl.where(spread < 0, 0.0, spread) / WIDTH  # keeps NaN, which maximum would not
    r = 1.0 / tl.sqrt(spread + norm_sum_eps)
    opening = 2 * tl.sigmoid(2 * ((query_gate + key_gate) * r + gate_bias)) - 1  # tanh
    square = query_gated_square + key_gated_square + 2 * gated_gated
    c_square = r * (r * square + 2 * (query_gated_bias + key_gated_bias)) + bias_square
    c_key = r * (gated_key + own_gated_key) + key_bias
    c_target = r * (target_gated + own_target_gated) + target_bias
    norm = opening * (opening * c_square + 2 * c_key) + key_square
    norm = tl.where(norm < 0, 0.0, norm) / WIDTH
    result = (opening * c_target + target_key) / tl.sqrt(norm + norm_eps) + offset
    place = i[:, None].to(tl.int64) * num_keys + j[None, :]
    tl.store(scores + place, result, mask=i_ok[:, None] & j_ok[None, :])


def dual_gate(norm_sum_eps: float, norm_eps: float, *sides: Tensor) -> Tensor:
    """f of one direction for every pair; see :func:`mimic_pl.units.gates.dual_gate`.

    Float32 products use three TF32 products each, as accurate as float32, or one where
    ``torch.set_float32_matmul_precision`` allows TF32.

    Args:
        norm_sum_eps: Epsilon of the first norm.
        norm_eps: Epsilon of the second norm.
        *sides: The fields of the query side, those of the key side, and the two scalars.

    Returns:
        ``[queries, keys]``, float32.
    """
    query_side, key_side, scalars = sides[:10], sides[10:20], sides[20:]
    query, pooled = query_side[0], key_side[0]
    (num_queries, width), num_keys = query.shape, len(pooled)
    scores = query.new_empty(num_queries, num_keys, dtype=torch.float32)
    if not scores.numel():
        return scores
    exact = _INTERPRETED or query.dtype == torch.float32
    tile = 64
    with torch.cuda.device_of(query):  # type: ignore[no-untyped-call]  # Triton launches on the current device
        _dual_gate[(triton.cdiv(num_queries, tile) * triton.cdiv(num_keys, tile),)](
            *(vectors.contiguous() for vectors in query_side[:3]),
            torch.stack([column.flatten().float() for column in query_side[3:]]),
            *(vectors.contiguous() for vectors in key_side[:3]),
            torch.stack([row.float() for row in key_side[3:]]),
            torch.stack([scalar.flatten()[0].float() for scalar in scalars]),
            scores,
            num_queries,
            num_keys,
            norm_sum_eps,
            norm_eps,
            WIDTH=width,
            TILE=tile,
            PIECE=32,
            TYPE=tl.float32 if exact else getattr(tl, str(query.dtype).removeprefix("torch.")),
            PRECISION="tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32",
            num_warps=8,
            num_stages=2,
        )
    return scores
