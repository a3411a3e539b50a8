"""Slow, literal reference implementations: every formula as in the paper, one pair at a time."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from mimic_pl.features import FeatureDims, Features
from mimic_pl.units import CMFU, TGLU, VDLU
from mimic_pl.units.vdlu import DualGate


def random_features(
    batch: int, dims: FeatureDims, tokens: int = 5, patches: int = 4, dtype: torch.dtype = torch.float32
) -> Features:
    """Random features with ragged text: row i has at least one real token."""
    lengths = torch.randint(1, tokens + 1, (batch,))
    return Features(
        torch.randn(batch, dims.text, dtype=dtype),
        torch.randn(batch, tokens, dims.text, dtype=dtype),
        torch.randn(batch, dims.image, dtype=dtype),
        torch.randn(batch, patches, dims.image, dtype=dtype),
        (torch.arange(tokens) < lengths[:, None]).long(),
    )


def pairwise(mentions: Features, entities: Features, score_pair) -> Tensor:
    """Score every pair on its own: ``[mentions, entities]``."""
    rows = []
    for m in range(len(mentions.text_global)):
        one = mentions.rows(m)
        rows.append([score_pair(one, entities.rows(e)) for e in range(len(entities.text_global))])
    return torch.stack([torch.stack(row) for row in rows])


def tglu(unit: TGLU, m: Features, e: Features) -> Tensor:
    """S_T of one pair, with the context of every entity token computed explicitly."""
    m_tokens, e_tokens = m.text_local, e.text_local
    if unit.mask_padding:
        m_tokens, e_tokens = m_tokens[m.text_mask.bool()], e_tokens[e.text_mask.bool()]
    query, key, value = unit.query(e_tokens), unit.key(m_tokens), unit.value(m_tokens)
    contexts = torch.softmax(query @ key.T / math.sqrt(query.shape[-1]), dim=-1) @ value
    local = unit.norm(contexts.mean(dim=0))
    return (m.text_global @ e.text_global + unit.context(e.text_global) @ local) / 2


def dual_gate(gate: DualGate, query_side: Features, key_side: Features) -> Tensor:
    """One direction of VDLU for one pair, with explicit pair vectors."""
    q, k = gate.global_(query_side.image_global), gate.global_(key_side.image_global)
    p = gate.local(key_side.image_local).mean(dim=0)
    c = gate.mix(gate.norm_sum(p + q))
    return gate.norm(torch.tanh(gate.gate(c)) * c + k) @ gate.norm(q)


def vdlu(unit: VDLU, m: Features, e: Features) -> Tensor:
    """S_V of one pair."""
    return (dual_gate(unit.entity_to_mention, e, m) + dual_gate(unit.mention_to_entity, m, e)) / 2


def cmfu(unit: CMFU, m: Features, e: Features) -> Tensor:
    """S_C of one pair."""

    def fuse(side: Features) -> Tensor:
        x, y = unit.text(side.text_global), unit.image(side.image_local)
        z = torch.softmax(x @ y.T, dim=-1) @ y
        return unit.norm(torch.tanh(unit.gate(x)) * x + z)

    return fuse(m) @ fuse(e)


def ranking(scores: Sequence[float]) -> list[int]:
    """Positions of all entities, best first: score descending, then position."""
    return sorted(range(len(scores)), key=lambda entity: (-scores[entity], entity))


def best_rank(scores: Sequence[float], golds: Iterable[int]) -> int:
    """Rank of the best gold; 0 without a gold."""
    order = ranking(scores)
    return min((order.index(gold) + 1 for gold in golds), default=0)


def ranks_by_sorting(scores: Tensor, golds: list[list[int]]) -> list[int]:
    """Rank of the best gold of each mention; 0 without a gold."""
    return [best_rank(row, own) for row, own in zip(scores.tolist(), golds, strict=True)]


def bm25(query: list[str], documents: list[list[str]], k1: float, b: float) -> list[float]:
    """Scores of all documents by Lucene's variant of BM25 (Kamphuis et al. 2020), term by term."""
    average_length = sum(map(len, documents)) / len(documents)
    scores = []
    for document in documents:
        counts, score = Counter(document), 0.0
        for term in filter(counts.get, query):
            owners = sum(term in other for other in documents)
            idf = math.log(1 + (len(documents) - owners + 0.5) / (owners + 0.5))
            score += idf * counts[term] / (counts[term] + k1 * (1 - b + b * len(document) / average_length))
        scores.append(score)
    return scores
