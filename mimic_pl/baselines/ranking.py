"""Ranking with any scorer of a block of mentions against the whole knowledge base."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from mimic_pl.errors import NonFiniteScoreError
from mimic_pl.ranking import Ranking

_SCORES_AT_ONCE = 1 << 24
"""Scores per block: 64 MB."""


class BlockScorer(Protocol):
    """Scores some of the mentions against all entities."""

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of the mentions in the slice, ``[mentions, entities]``; higher is better."""


def rank_all(
    scorer: BlockScorer, golds: Sequence[Sequence[int]], num_entities: int, top_k: int, block_size: int | None = None
) -> Iterator[Ranking]:
    """Rank all entities for all mentions, block by block.

    The order is that of :mod:`mimic_pl.metrics`: by descending score, then by position in the knowledge base; a
    mention's rank is that of its best-ranked gold.

    Args:
        scorer: Scores the mentions.
        golds: Positions of each mention's golds; empty if no gold is in the knowledge base (rank 0).
        num_entities: Size of the knowledge base.
        top_k: Number of top entities per mention.
        block_size: Number of mentions to score at once; by default 64 MB of scores.

    Raises:
        NonFiniteScoreError: A score is NaN or infinite.
    """
    block_size = block_size or max(1, _SCORES_AT_ONCE // num_entities)
    top_k = min(top_k, num_entities)
    for start in range(0, len(golds), block_size):
        block = slice(start, start + block_size)
        scores = scorer(block)
        _require_finite(scores, start)
        ranks = [_rank(row, own) for row, own in zip(scores, golds[block], strict=True)]
        top = np.stack([_top(row, top_k) for row in scores])
        yield Ranking(
            {"overall": torch.tensor(ranks, dtype=torch.int64)},
            torch.from_numpy(top),
            {"overall": torch.from_numpy(np.take_along_axis(scores, top, axis=1))},
        )


def _rank(scores: npt.NDArray[np.float32], golds: Sequence[int]) -> int:
    """Rank of the best-ranked gold from one mention's scores ``[entities]``; 0 without a gold."""
    if not golds:
        return 0
    best = max(golds, key=lambda gold: (scores[gold], -gold))
    ahead = np.count_nonzero(scores > scores[best]) + np.count_nonzero(scores[:best] == scores[best])
    return int(ahead) + 1


def _top(scores: npt.NDArray[np.float32], k: int) -> npt.NDArray[np.int64]:
    """Positions of the top k entities from one mention's scores ``[entities]``, best first."""
    last = np.partition(scores, -k)[-k]
    above = np.flatnonzero(scores > last)
    chosen = np.concatenate([above, np.flatnonzero(scores == last)[: k - len(above)]])
    return chosen[np.lexsort((chosen, -scores[chosen]))]


def _require_finite(scores: npt.NDArray[np.float32], start: int) -> None:
    if np.isfinite(scores).all():
        return
    row, column = (int(indices[0]) for indices in np.nonzero(~np.isfinite(scores)))
    value = float(scores[row, column])
    raise NonFiniteScoreError(
        f"The score of mention {start + row} of the split with entity {column} of the knowledge base is {value}. Check "
        "that the encoder's checkpoint is complete.",
        "overall",
        start + row,
        column,
        value,
    )
