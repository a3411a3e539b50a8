"""Scores of names alone: the mentioned words against the entity's name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from rapidfuzz import fuzz, process

from mimic_pl.records import Entity, Mention


class ExactName:
    """1 where the mention is the entity's name, character by character, else 0.

    Args:
        mentions: The mentions.
        entities: The knowledge base.
    """

    def __init__(self, mentions: Sequence[Mention], entities: Sequence[Entity]) -> None:
        owners: dict[str, list[int]] = {}
        for position, entity in enumerate(entities):
            owners.setdefault(entity.name, []).append(position)
        self._owners = [owners.get(mention.mention, []) for mention in mentions]
        self._num_entities = len(entities)

    def __call__(self, block: slice) -> npt.NDArray[np.float32]:
        """Scores of these mentions, ``[mentions, entities]``."""
        owners = self._owners[block]
        scores = np.zeros((len(owners), self._num_entities), np.float32)
        for row, own in zip(scores, owners, strict=True):
            row[own] = 1
        return scores


class NameSimilarity:
    """Normalised Indel similarity of mention and name, both lower-cased: rapidfuzz's ``ratio``, 0 to 100.

    ``100 (1 - d / (len(mention) + len(name)))``, where d counts the characters that must be inserted or deleted to turn
    one into the other. It is the longest common subsequence, twice, over both lengths.

    Args:
        mentions: The mentions.
        entities: The knowledge base.
        workers: Threads; all cores by default.
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
