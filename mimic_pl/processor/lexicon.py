"""BM25 weights as sparse vectors, for a unit that scores lexical overlap of mention and entity."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from mimic_pl.errors import ConfigError
from mimic_pl.processor.record_features import RecordFeatures
from mimic_pl.processor.words import content_words
from mimic_pl.ranges import COUNT, FRACTION, NATURAL, NOT_NEGATIVE, in_range
from mimic_pl.records import Entity, Mention

_log = logging.getLogger(__name__)


class BM25Lexicon(RecordFeatures):
    """BM25 over the words of the knowledge base (Robertson's weighting in Lucene's variant).

    With tf the frequency of a term in a text, df the number of the N entity texts that contain it, and l the length of
    a text, the weights are

        mention:  w_m(t) = tf ln(1 + (N - df + 1/2) / (df + 1/2))
        entity:   w_e(t) = tf / (tf + k1 (1 - b + b l / mean l))

    so that the dot product of both vectors is BM25 with the mention's text as the query; it is exact if no text has
    more than ``max_terms`` distinct terms. The idf is part of the mention's vector, so that only the mean length in an
    entity's vector depends on other entities. Words are lower-cased and English stop words removed; with ``ngrams``,
    the character n-grams of every word are additional terms, so that inflections and misspellings still match.

    It is fitted to a knowledge base and has no trained weights.

    Args:
        k1: Saturation of the term frequency.
        b: Length normalisation, from 0 to 1.
        ngrams: Length of character n-grams, 0 for none.
        max_terms: Maximum number of terms per text; those with the largest weights are kept.

    Raises:
        ConfigError: A parameter is out of range.

    Example:
        >>> lexicon = BM25Lexicon(max_terms=2).fit(["fountain pen", "ball pen"])
        >>> lexicon.sparse_mentions(["my fountain"])["ids"]
        tensor([[0, 0]])
        >>> lexicon.sparse_entities(["fountain pen"])["weights"]
        tensor([[0.4000, 0.4000]])
    """

    reads_text = True

    @in_range(k1=NOT_NEGATIVE, b=FRACTION, ngrams=NATURAL, max_terms=COUNT)
    def __init__(self, k1: float = 1.5, b: float = 0.75, ngrams: int = 0, max_terms: int = 64) -> None:
        self.k1 = k1
        self.b = b
        self.ngrams = ngrams
        self.max_terms = max_terms
        self._vocabulary: dict[str, int] | None = None
        self._idf = np.zeros(0, np.float32)
        self._mean_length = 1.0
        self._cut_mentions = False

    def fit(self, entities: Iterable[str]) -> Self:
        """Learn the vocabulary, document frequencies and mean length from the entities' texts."""
        fitted = copy.copy(self)
        vocabulary: dict[str, int] = {}
        frequencies: Counter[int] = Counter()
        texts = total = cut = 0
        for text in entities:
            terms = self._terms(text)
            own = {vocabulary.setdefault(term, len(vocabulary)) for term in terms}
            frequencies.update(own)
            texts += 1
            total += len(terms)
            cut += len(own) > self.max_terms
        df = np.array([frequencies[term] for term in range(len(vocabulary))], np.float64)
        fitted._vocabulary = vocabulary
        fitted._idf = np.log1p((texts - df + 0.5) / (df + 0.5)).astype(np.float32)
        fitted._mean_length = max(total / max(texts, 1), 1e-9)
        fitted._cut_mentions = False
        if cut:
            _log.warning(
                f"Of {texts} entities, {cut} have more than {self.max_terms} distinct terms; those with the largest "
                "weights are kept. To keep more, increase the lexicon's max_terms."
            )
        return fitted

    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` int64 and ``weights`` float32 of the mentions' terms, ``[mentions, max_terms]``."""
        return self.sparse_mentions(texts)

    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` int64 and ``weights`` float32 of the entities' terms, ``[entities, max_terms]``."""
        return self.sparse_entities(texts)

    def sparse_mentions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of mentions' texts, padded with weight 0; words that occur in no entity are ignored."""
        counts = [self._counts(text)[0] for text in texts]
        if not self._cut_mentions and any(len(own) > self.max_terms for own in counts):
            self._cut_mentions = True
            _log.warning(
                f"A mention has more than {self.max_terms} distinct terms; those with the largest weights are kept, "
                "also for further mentions. To keep more, increase the lexicon's max_terms."
            )
        return self._padded((ids, tf * self._idf[ids], tf * self._idf[ids]) for ids, tf in map(_arrays, counts))

    def sparse_entities(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of entities' texts, padded with weight 0."""

        def vectors() -> Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]]:
            for text in texts:
                counts, length = self._counts(text)
                ids, tf = _arrays(counts)
                weights = tf / (tf + np.float32(self.k1 * (1 - self.b + self.b * length / self._mean_length)))
                yield ids, weights, weights * self._idf[ids]

        return self._padded(vectors())

    def describe(self) -> str:
        """The settings, to check whether an index was built with them."""
        return f"BM25 k1={self.k1} b={self.b} ngrams={self.ngrams} max_terms={self.max_terms}"

    def _counts(self, text: str) -> tuple[Mapping[int, int], int]:
        """Frequency of each known term in a text, and its total number of terms."""
        if self._vocabulary is None:
            raise ConfigError(
                "The lexicon was not fitted to a knowledge base yet. Fit the processor to the entities first: "
                "model.processor = model.processor.fit(entities)"
            )
        terms = self._terms(text)
        return Counter(self._vocabulary[term] for term in terms if term in self._vocabulary), len(terms)

    def _padded(
        self, rows: Iterable[tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.float32]]]
    ) -> dict[str, Tensor]:
        """Terms, weights and importances of each text -> tensors ``[batch, max_terms]`` of the most important terms."""
        rows = list(rows)
        ids = np.zeros((len(rows), self.max_terms), np.int64)
        weights = np.zeros((len(rows), self.max_terms), np.float32)
        for row, (own, own_weights, importance) in enumerate(rows):
            if len(own) > self.max_terms:
                kept = np.sort(np.argsort(-importance, kind="stable")[: self.max_terms])
                own, own_weights = own[kept], own_weights[kept]
            ids[row, : len(own)] = own
            weights[row, : len(own)] = own_weights
        return {"ids": torch.from_numpy(ids), "weights": torch.from_numpy(weights)}

    def _terms(self, text: str) -> list[str]:
        plain = content_words(text)
        if not self.ngrams:
            return plain
        # '#' is not a word character: n-grams never equal words, and those at word boundaries are marked.
        marked = [f"#{word}#" for word in plain]
        grams = [
            "#" + word[start : start + self.ngrams] for word in marked for start in range(len(word) - self.ngrams + 1)
        ]
        return plain + grams


def _arrays(counts: Mapping[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]:
    """Terms in ascending order, and their frequencies."""
    order = sorted(counts)
    return np.array(order, np.int64), np.array([counts[term] for term in order], np.float32)
