"""BM25 of a mention's text against every entity's text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import bm25s
import numpy as np
import numpy.typing as npt

from mimic_pl.processor.words import content_words


class BM25:
    """BM25 in Lucene's form, as bm25s computes it, of mentions' texts as queries against entities' texts as documents.

    ``sum over the words w of a query of idf(w) f / (f + k1 (1 - b + b n / n_mean))`` with f the occurrences of w in the
    document, n the document's words, n_mean their mean over all documents, and ``idf(w) = ln(1 + (N - N_w + 0.5) / (N_w
    + 0.5))`` for N documents of which N_w hold w. A word that a query holds twice counts twice, so a mention counts
    once more than the rest of its sentence. Words are those of :func:`~mimic_pl.processor.words.content_words`.

    Args:
        mentions: Text of each mention.
        entities: Text of each entity.
        k1: How soon a repeated word stops to count; the default is bm25s's.
        b: How much a long document is discounted; the default is bm25s's.
    """

    def __init__(
        self,
        mentions: Sequence[str],
        entities: Iterable[str],
        k1: float = 1.5,
        b: float = 0.75,
    ) -> None:
        # Sums of float64, rounded once, do not depend on the order of the words.
        self._index = bm25s.BM25(k1=k1, b=b, method="lucene", dtype="float64")
        documents = [content_words(text) for text in entities]
        self._num_entities = len(documents)
        # bm25s cannot index texts without a single word between them.
        self._empty = not any(documents)
        if not self._empty:
            self._index.index(documents, show_progress=False)
        self._mentions = mentions

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``; 0 where no word is shared."""
        texts = self._mentions[block]
        scores = np.zeros((len(texts), self._num_entities), np.float32)
        if self._empty:
            return scores
        for row, text in zip(scores, texts, strict=True):
            known = self._index.get_tokens_ids(content_words(text))
            if known:  # bm25s takes no query without words
                row[:] = self._index.get_scores_from_ids(known)
        return scores
