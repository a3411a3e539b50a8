"""BM25 weights as sparse vectors, for a unit that scores lexical overlap of mention and entity."""

from __future__ import annotations

import copy
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from typing_extensions import Self

from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.document_frequencies import DocumentFrequencies
from mimic_pl.processor.record_features import RecordFeatures, Statistics
from mimic_pl.processor.template import TextTemplate
from mimic_pl.processor.words import content_words, term_id
from mimic_pl.ranges import COUNT, FRACTION, NATURAL, NOT_NEGATIVE, in_range
from mimic_pl.records import Entity, Mention

_log = logging.getLogger(__name__)


_SHORTEST = 1e-9
"""Minimum of the mean length, if all texts are empty."""

_Row = tuple[npt.NDArray[np.int64], npt.NDArray[np.float32]]
"""Terms and weights of a text."""


class BM25Lexicon(RecordFeatures):
    """BM25 over the words of the knowledge base (Robertson's weighting in Lucene's variant).

    With tf the frequency of a term in a text, df the number of the N entity texts that contain it, and l the length of
    a text, the weights are

        mention:  w_m(t) = tf ln(1 + (N - df + 1/2) / (df + 1/2))
        entity:   w_e(t) = tf / (tf + k1 (1 - b + b l / mean l))

    so that the dot product of both vectors is BM25 with the mention's text as the query; it is exact if no text has
    more than ``max_terms`` distinct terms. Words are lower-cased and English stop words removed; with ``ngrams``, the
    character n-grams of every word are additional terms, so that inflections and misspellings still match.

    It is fitted to a knowledge base and has no trained weights. The knowledge base may change without changing the
    vectors of the entities that stay: terms are numbered by a hash, df and N are only in the mention's vector, and the
    mean length is that of the last :meth:`fit`. How far the current one is from it is the :attr:`drift`.

    Args:
        k1: Saturation of the term frequency.
        b: Length normalisation, from 0 to 1.
        ngrams: Length of character n-grams, 0 for none.
        max_terms: Maximum number of terms per text: of a mention, those with the largest weights are kept; of an
            entity, the first ones, which keep more hits than its most frequent ones.
        mention_template: Text of a mention to compare, from ``{mention}``, ``{sentence}`` and any other field of its
            record; by default the one that is passed to the model. With ``{mention}`` and the entity's ``{name}``,
            names are compared with names alone.
        entity_template: The same of an entity, from ``{name}``, ``{attr}`` and any other field of its record.

    Raises:
        ConfigError: A parameter is out of range, or a template names no field.

    Example:
        >>> lexicon = BM25Lexicon(max_terms=2).fit(["fountain pen", "ball pen"])
        >>> lexicon.sparse_mentions(["my pen"])["weights"]
        tensor([[0.1823, 0.0000]])
        >>> lexicon.sparse_entities(["fountain pen"])["weights"]
        tensor([[0.4000, 0.4000]])
        >>> lexicon.updated(added=["brush"]).sparse_mentions(["my pen"])["weights"]
        tensor([[0.4700, 0.0000]])
    """

    reads_text = True

    max_drift = 0.2
    """Above a mean length that is wrong by a fifth, indexing again is advised.

    At a drift of 0.20 to 0.25, about 1 % of the top entities changed, and H@1 moved, up or down, by at most 0.3 points
    on RichpediaMEL and 1.0 on EmojiMEL.
    """

    @in_range(k1=NOT_NEGATIVE, b=FRACTION, ngrams=NATURAL, max_terms=COUNT)
    def __init__(
        self,
        k1: float = 1.5,
        b: float = 0.75,
        ngrams: int = 0,
        max_terms: int = 64,
        mention_template: str | None = None,
        entity_template: str | None = None,
    ) -> None:
        self.k1 = k1
        self.b = b
        self.ngrams = ngrams
        self.max_terms = max_terms
        self.mention_template = None if mention_template is None else TextTemplate(mention_template)
        self.entity_template = None if entity_template is None else TextTemplate(entity_template)
        self._counted: DocumentFrequencies | None = None
        self._mean_length = 1.0
        self._cut_mentions = False

    def fit(self, entities: Iterable[str]) -> Self:
        """Learn document frequencies and mean length from the entities' texts."""
        texts = cut = 0

        def terms() -> Iterator[list[int]]:
            nonlocal texts, cut
            for text in entities:
                own = self._terms(text)
                texts, cut = texts + 1, cut + (len(own) > self.max_terms and len(set(own)) > self.max_terms)
                yield own

        counted = DocumentFrequencies().updated(terms())
        if cut:
            _log.warning(
                f"Of {texts} entities, {cut} have more than {self.max_terms} distinct terms; the first ones of each "
                "are kept. To keep more, increase the lexicon's max_terms."
            )
        return self._fitted(counted, max(counted.mean_length, _SHORTEST))

    def statistics(self) -> Statistics:
        """Document frequencies (``terms``, ``frequencies``, ``texts``, ``length``), and ``mean_length`` when fitted."""
        if self._counted is None:
            return {}
        return {**self._counted.arrays(), "mean_length": np.float64(self._mean_length)[...]}

    def with_statistics(self, statistics: Statistics) -> Self:
        """This lexicon, fitted to the knowledge base whose :meth:`statistics` these are."""
        counted = DocumentFrequencies.from_arrays(statistics)
        mean_length = float(statistics.get("mean_length", np.float64("nan")))
        if not mean_length > 0:
            raise DataError(f"The stored mean length of the lexicon is {mean_length}. Index the knowledge base again.")
        return self._fitted(counted, mean_length)

    def updated(self, added: Iterable[str] = (), removed: Iterable[str] = ()) -> Self:
        """Follow a change of the knowledge base: document frequencies change, the mean length stays.

        Raises:
            ConfigError: The lexicon is not fitted.
            DataError: A removed text is not in the knowledge base.
        """
        counted = self._fitted_counts.updated(map(self._terms, added), map(self._terms, removed))
        return self._fitted(counted, self._mean_length)

    def recounted(self, entities: Iterable[str]) -> Self:
        """Count the document frequencies of all entities again; the mean length stays."""
        return self._fitted(DocumentFrequencies().updated(map(self._terms, entities)), self._mean_length)

    @property
    def drift(self) -> float:
        """|l / l_fitted - 1|, with l the current mean length of a text and l_fitted the one of the last :meth:`fit`."""
        current = max(self._fitted_counts.mean_length, _SHORTEST)
        return abs(current / self._mean_length - 1)

    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` int64 and ``weights`` float32 of the mentions' terms, ``[mentions, max_terms]``."""
        return self.sparse_mentions(texts)

    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` int64 and ``weights`` float32 of the entities' terms, ``[entities, max_terms]``."""
        return self.sparse_entities(texts)

    def sparse_mentions(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of mentions' texts, padded with weight 0; words that occur in no entity are ignored."""
        counted = self._fitted_counts
        rows: list[_Row] = []
        for text in texts:
            ids, tf = _arrays(Counter(self._terms(text)).items())
            df = counted.of(ids)
            ids, tf, df = ids[df > 0], tf[df > 0], df[df > 0].astype(np.float64)
            weights = tf * np.log1p((counted.texts - df + 0.5) / (df + 0.5)).astype(np.float32)
            if len(ids) > self.max_terms:
                self._warn_of_cut()
                kept = np.sort(np.argsort(-weights, kind="stable")[: self.max_terms])
                ids, weights = ids[kept], weights[kept]
            rows.append((ids, weights))
        return self._padded(rows)

    def sparse_entities(self, texts: Sequence[str]) -> dict[str, Tensor]:
        """Vectors of entities' texts, padded with weight 0. A vector depends on its text and the fitted mean length."""
        if self._counted is None:
            raise _not_fitted()
        rows: list[_Row] = []
        for text in texts:
            terms = self._terms(text)
            norm = np.float32(self.k1 * (1 - self.b + self.b * len(terms) / self._mean_length))
            # The first ones, in the order of the text: any weight by rarity would depend on other entities.
            ids, tf = _arrays(islice(Counter(terms).items(), self.max_terms))
            rows.append((ids, tf / (tf + norm)))
        return self._padded(rows)

    def describe(self) -> str:
        """What the vectors of entities depend on, to check whether an index was built with it."""
        settings = f"BM25 of hashed terms k1={self.k1} b={self.b} ngrams={self.ngrams} max_terms={self.max_terms}"
        if self.entity_template is not None:
            settings += f" of {self.entity_template.template!r}"
        return settings if self._counted is None else f"{settings} mean length={self._mean_length!r}"

    @property
    def _fitted_counts(self) -> DocumentFrequencies:
        if self._counted is None:
            raise _not_fitted()
        return self._counted

    def _fitted(self, counted: DocumentFrequencies, mean_length: float) -> Self:
        fitted = copy.copy(self)
        fitted._counted, fitted._mean_length, fitted._cut_mentions = counted, mean_length, False
        return fitted

    def _warn_of_cut(self) -> None:
        if not self._cut_mentions:
            self._cut_mentions = True
            _log.warning(
                f"A mention has more than {self.max_terms} distinct terms; those with the largest weights are kept, "
                "also for further mentions. To keep more, increase the lexicon's max_terms."
            )

    def _padded(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        """Terms and weights of each text -> tensors ``[batch, max_terms]``."""
        ids = np.zeros((len(rows), self.max_terms), np.int64)
        weights = np.zeros((len(rows), self.max_terms), np.float32)
        for row, (own, own_weights) in enumerate(rows):
            ids[row, : len(own)] = own
            weights[row, : len(own)] = own_weights
        return {"ids": torch.from_numpy(ids), "weights": torch.from_numpy(weights)}

    def _terms(self, text: str) -> list[int]:
        """Ids of the terms of a text, with repetitions."""
        plain = content_words(text)
        if not self.ngrams:
            return [term_id(term) for term in plain]
        # '#' is not a word character: n-grams never equal words, and those at word boundaries are marked.
        marked = [f"#{word}#" for word in plain]
        grams = [
            "#" + word[start : start + self.ngrams] for word in marked for start in range(len(word) - self.ngrams + 1)
        ]
        return [term_id(term) for term in plain + grams]


def _arrays(counts: Iterable[tuple[int, int]]) -> _Row:
    """Terms in ascending order, and their frequencies."""
    order = sorted(counts)
    return np.array([term for term, _ in order], np.int64), np.array([count for _, count in order], np.float32)


def _not_fitted() -> ConfigError:
    return ConfigError(
        "The lexicon was not fitted to a knowledge base yet. Fit the processor to the entities first: "
        "model.processor = model.processor.fit(entities)"
    )
