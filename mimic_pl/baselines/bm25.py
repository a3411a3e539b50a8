"""BM25 of mention texts against entity texts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import bm25s
import numpy as np
import numpy.typing as npt

from mimic_pl.processor.words import content_words


class BM25:
    """BM25 in Lucene's variant (from bm25s) with mention texts as queries and entity texts as documents.

    ``sum over the words w of a query of idf(w) f / (f + k1 (1 - b + b n / n_mean))`` with f the frequency of w in the
    document, n the document's length in words, n_mean the mean length, and ``idf(w) = ln(1 + (N - N_w + 0.5) / (N_w +
    0.5))`` for N documents of which N_w contain w. Repeated words of a query count repeatedly, so a mention counts once
    more than the rest of its sentence. Words are those of :func:`~mimic_pl.processor.words.content_words`.

    Args:
        mentions: Text of each mention.
        entities: Text of each entity.
        k1: Saturation of the term frequency; bm25s's default.
        b: Strength of length normalization; bm25s's default.
    """

    def __init__(
        self,
        mentions: Sequence[str],
        entities: Iterable[str],
        k1: float = 1.5,
        b: float = 0.75,
    ) -> None:
        # Sums in float64, rounded once, do not depend on the order of the words.
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
        documents = [content_words(text) for text in entities]
        self._num_entities = len(documents)
        # bm25s cannot index a corpus without any words.
        self._empty = not any(documents)
        if not self._empty:
            self._index.index(documents, show_progress=False)
        self._mentions = mentions

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``; 0 without common words."""
        texts = self._mentions[block]
        scores = np.zeros((len(texts), self._num_entities), np.float32)
        if self._empty:
            return scores
        for row, text in zip(scores, texts, strict=True):
            known = self._index.get_tokens_ids(content_words(text))
            if known:  # bm25s does not accept empty queries
                row[:] = self._index.get_scores_from_ids(known)
        return scores
