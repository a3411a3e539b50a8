"""Baselines that compare the mention with the entity's name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from mimic_pl.records import Entity, Mention


class ExactName:
    """1 if the mention equals the entity's name exactly, else 0.

    Args:
        mentions: The mentions.
        entities: The knowledge base.
    """

    def __init__(self, mentions: Sequence[Mention], entities: Sequence[Entity]) -> None:
        by_name: dict[str, list[int]] = {}
        for position, entity in enumerate(entities):
            by_name.setdefault(entity.name, []).append(position)
        self._matches = [by_name.get(mention.mention, []) for mention in mentions]
        self._num_entities = len(entities)

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``."""
        matches = self._matches[block]
        scores = np.zeros((len(matches), self._num_entities), np.float32)
        for row, positions in zip(scores, matches, strict=True):
            row[positions] = 1
        return scores


class NameSimilarity:
    """Normalised Indel similarity of mention and name, both lower-cased: rapidfuzz's ``ratio``, 0 to 100.

    ``100 (1 - d / (len(mention) + len(name)))``, where d is the number of insertions and deletions that turn one into
    the other. The fraction is twice the length of the longest common subsequence over the sum of both lengths.

    Args:
        mentions: The mentions.
        entities: The knowledge base.
        workers: Number of threads; all cores by default.
    """

    def __init__(self, mentions: Sequence[Mention], entities: Sequence[Entity], workers: int = -1) -> None:
        self._mentions = [mention.mention.lower() for mention in mentions]
        self._names = [entity.name.lower() for entity in entities]
        self._workers = workers

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``."""
        return process.cdist(
            self._mentions[block], self._names, scorer=fuzz.ratio, dtype=np.float32, workers=self._workers
        )
