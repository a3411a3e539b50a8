"""A knowledge base's words as sparse vectors, so that a unit may score what mention and entity spell alike."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence

import bm25s
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mimic_pl.data.words import content_words
from mimic_pl.errors import ConfigError

_log = logging.getLogger(__name__)


class TermTable:
    """Sparse vectors of many texts, ragged in memory and padded by the batch.

    Args:
        rows: For each text its term numbers and their weights.
        width: Terms that a batch is padded to; of a text with more the heaviest are kept.
    """

    def __init__(self, rows: Iterable[tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]], width: int) -> None:
        ids, weights, ends = [], [], [0]
        self.width = width
        self.cut = 0
        for own_ids, own_weights in rows:
            if len(own_ids) > width:
                self.cut += 1
                heaviest = np.sort(np.argsort(-own_weights, kind="stable")[:width])
                own_ids, own_weights = own_ids[heaviest], own_weights[heaviest]
            ids.append(own_ids)
            weights.append(own_weights)
            ends.append(ends[-1] + len(own_ids))
        self._ids = np.concatenate(ids) if ids else np.zeros(0, np.int32)
        self._weights = np.concatenate(weights) if weights else np.zeros(0, np.float32)
        self._ends = np.asarray(ends, np.int64)

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends) - 1

    def __getitem__(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Term numbers int64 and weights float32 of some texts, each ``[batch, width]``; 0 where a text has fewer."""
        ids = np.zeros((len(indices), self.width), np.int64)
        weights = np.zeros((len(indices), self.width), np.float32)
        for row, index in enumerate(indices):
            start, end = self._ends[index], self._ends[index + 1]
            ids[row, : end - start] = self._ids[start:end]
            weights[row, : end - start] = self._weights[start:end]
        return torch.from_numpy(ids), torch.from_numpy(weights)


class BM25Lexicon:
    """BM25 over the words of the knowledge base (Robertson's weighting as Lucene writes it, by bm25s).

    An entity's vector holds BM25's weight of each of its words, a mention's how often each known word occurs in it, so
    that their product is BM25 of the mention's text as the query: exactly that where no text has more than
    ``max_terms`` different terms. Words are lower-cased and English stop words left out; with ``ngrams`` the character
    n-grams of every word are terms as well, so that inflections and misspellings still meet.

    It is made from the knowledge base at hand and holds no trained weights: another knowledge base has another one.

    Args:
        k1: How soon a repeated word stops to count.
        b: How much long texts are discounted, 0 to 1.
        ngrams: Length of character n-grams, 0 for none.
        max_terms: Terms of a text that are kept at most, the heaviest; how many texts had more is logged.

    Raises:
        ConfigError: A parameter lies outside of its range.

    Example:
        >>> lexicon = BM25Lexicon()
        >>> lexicon.fit(["fountain pen", "ball pen"])
        >>> ids, weights = lexicon.mentions(["my fountain"])[[0]]
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75, ngrams: int = 0, max_terms: int = 64) -> None:
        if k1 < 0 or not 0 <= b <= 1 or ngrams < 0 or max_terms < 1:
            raise ConfigError(
                f"BM25Lexicon takes k1 >= 0, b from 0 to 1, ngrams >= 0 and max_terms >= 1, not k1={k1}, b={b}, "
                f"ngrams={ngrams}, max_terms={max_terms}."
            )
        self.k1 = k1
        self.b = b
        self.ngrams = ngrams
        self.max_terms = max_terms
        self._numbers: dict[str, int] = {}

    def fit(self, texts: Iterable[str]) -> TermTable:
        """Learn words and their weights from the entities' texts.

        Returns:
            The entities' vectors.
        """
        rows = [self._number(self._terms(text), learn=True) for text in texts]
        retriever = bm25s.BM25(method="lucene", k1=self.k1, b=self.b)
        # A document without words would be left out; -1 is no word of any other text.
        retriever.index((rows, dict(self._numbers)), create_empty_token=False, show_progress=False)
        scores = retriever.scores
        owners = scores["indices"]
        terms = np.repeat(np.arange(len(scores["indptr"]) - 1, dtype=np.int32), np.diff(scores["indptr"]))
        order = np.argsort(owners, kind="stable")
        ends = np.searchsorted(owners[order], np.arange(len(rows) + 1))
        terms, weights = terms[order], scores["data"][order].astype(np.float32)
        table = TermTable(
            ((terms[start:end], weights[start:end]) for start, end in zip(ends, ends[1:], strict=False)),
            self.max_terms,
        )
        self._tell(table, "entities")
        return table

    def mentions(self, texts: Iterable[str]) -> TermTable:
        """Vectors of mentions' texts; words that no entity has are left out."""
        counted = (Counter(self._number(self._terms(text), learn=False)) for text in texts)
        table = TermTable(
            (
                (np.fromiter(counts, np.int32, len(counts)), np.fromiter(counts.values(), np.float32, len(counts)))
                for counts in counted
            ),
            self.max_terms,
        )
        self._tell(table, "mentions")
        return table

    def describe(self) -> str:
        """The settings, to tell whether an index was made with the same."""
        return f"BM25 k1={self.k1} b={self.b} ngrams={self.ngrams} max_terms={self.max_terms}"

    def _terms(self, text: str) -> list[str]:
        plain = content_words(text)
        if not self.ngrams:
            return plain
        # '#' is in no word: a gram never equals a word, and those at a word's ends say so.
        marked = [f"#{word}#" for word in plain]
        grams = [
            "#" + word[start : start + self.ngrams] for word in marked for start in range(len(word) - self.ngrams + 1)
        ]
        return plain + grams

    def _number(self, terms: list[str], learn: bool) -> list[int]:
        if learn:
            return [self._numbers.setdefault(term, len(self._numbers)) for term in terms]
        return [self._numbers[term] for term in terms if term in self._numbers]

    def _tell(self, table: TermTable, what: str) -> None:
        if table.cut:
            _log.warning(
                f"Of {len(table)} {what} {table.cut} have more than {self.max_terms} different terms; the heaviest are "
                "kept. To keep more: --data.lexicon.max_terms."
            )
