"""Document frequencies of a knowledge base that changes: counts of whole numbers, exact after any history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from mimic_pl.errors import DataError

Terms = Iterable[int]
"""Ids of the terms of a text, with repetitions."""


class DocumentFrequencies(NamedTuple):
    """How many texts contain each term, and how long the texts are.

    All are sums of whole numbers over the texts, so that texts can be added and removed in any order: the result is
    that of counting the remaining texts.

    Attributes:
        terms: Ids of all terms in ascending order, int64 ``[terms]``.
        frequencies: Number of texts with each term, at least 1, int32 ``[terms]``.
        texts: Number of texts.
        length: Number of terms of all texts together, with repetitions.
    """

    terms: npt.NDArray[np.int64] = np.zeros(0, np.int64)
    frequencies: npt.NDArray[np.int32] = np.zeros(0, np.int32)
    texts: int = 0
    length: int = 0

    def updated(self, added: Iterable[Terms] = (), removed: Iterable[Terms] = ()) -> DocumentFrequencies:
        """The frequencies after adding and removing texts.

        Raises:
            DataError: A removed text was not counted.
        """
        changes: Counter[int] = Counter()
        texts, length = self.texts, self.length
        for text in added:
            own = list(text)
            changes.update(set(own))
            texts, length = texts + 1, length + len(own)
        for text in removed:
            own = list(text)
            changes.subtract(set(own))
            texts, length = texts - 1, length - len(own)
        terms, frequencies = self._changed(changes)
        if texts < 0 or length < 0 or (frequencies < 0).any():
            raise DataError(
                "A text to be removed from the document frequencies was not counted in them. They belong to another "
                "knowledge base, or its texts were changed without an update: fit the processor to all entities again."
            )
        kept = frequencies > 0
        if not kept.all():
            terms, frequencies = terms[kept], frequencies[kept]
        return DocumentFrequencies(terms, frequencies, texts, length)

    def _changed(self, changes: Mapping[int, int]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
        """Terms and frequencies after changes, some of which may be 0 or below."""
        changed = np.fromiter(changes.keys(), np.int64, len(changes))
        by = np.fromiter(changes.values(), np.int32, len(changes))
        order = np.argsort(changed)
        changed, by = changed[order], by[order]
        positions, known = self._find(changed)
        frequencies = self.frequencies.copy()
        frequencies[positions[known]] += by[known]
        if known.all():
            return self.terms, frequencies
        return (
            np.insert(self.terms, positions[~known], changed[~known]),
            np.insert(frequencies, positions[~known], by[~known]),
        )

    def of(self, terms: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """Frequency of each of these terms, 0 for one that no text contains, int32 of the same shape."""
        positions, known = self._find(terms)
        found = np.zeros(terms.shape, np.int32)
        found[known] = self.frequencies[positions[known]]
        return found

    @property
    def mean_length(self) -> float:
        """Mean number of terms of a text."""
        return self.length / max(self.texts, 1)

    def _find(self, terms: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
        """Where each term is, or would have to be inserted; and whether it is there."""
        positions = np.searchsorted(self.terms, terms)
        known = np.zeros(terms.shape, np.bool_)
        inside = positions < len(self.terms)
        known[inside] = self.terms[positions[inside]] == terms[inside]
        return positions, known

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All counts as arrays by name, for storage."""
        return {name: np.asarray(value) for name, value in self._asdict().items()}

    @staticmethod
    def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> DocumentFrequencies:
        """Undo :meth:`arrays`.

        Raises:
            DataError: The arrays are not those of :meth:`arrays`.
        """
        try:
            terms, frequencies = np.asarray(arrays["terms"], np.int64), np.asarray(arrays["frequencies"], np.int32)
            counts = DocumentFrequencies(terms, frequencies, int(arrays["texts"]), int(arrays["length"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"The stored document frequencies are incomplete or damaged: {error!r}.") from error
        if terms.ndim != 1 or terms.shape != frequencies.shape or (np.diff(terms) <= 0).any():
            raise DataError(
                "The stored document frequencies are damaged: there must be one frequency per term, and the terms must "
                "ascend."
            )
        return counts
