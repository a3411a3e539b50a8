"""A tested run with its model and data, for encoding selected mentions and entities."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mimic_pl.data.dataset import BatchDataset
from mimic_pl.data.training_split import NO_GOLD, SEEN, UNSEEN
from mimic_pl.encoding import Side
from mimic_pl.errors import DataError
from mimic_pl.evaluated_run import EvaluatedRun
from mimic_pl.features import Features
from mimic_pl.linking.encoded import Encoded, encoded
from mimic_pl.runs import load_run

_AT_ONCE = 64
"""Mentions or entities to encode at once."""


class LoadedRun:
    """Model and data of a run.

    Args:
        run: The run; the checkpoint that was tested is loaded.

    Raises:
        ConfigError: The data of the run does not exist.
        CheckpointError: The checkpoint that was tested does not exist any more, or cannot be read.
        DataError: The test split differs from the one that was tested.
    """

    def __init__(self, run: EvaluatedRun) -> None:
        self.run = run
        self.model, datamodule = load_run(run.folder, _tested(run))
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        datamodule.setup("test")
        self.data = datamodule.ranked
        self._mentions = self.data.dataset("test")
        self._entities = self.data.entity_dataset
        self.mention_indices = self._mention_indices(run.predictions.ids)

    def mentions(self, indices: Sequence[int]) -> Encoded:
        """Encode the test mentions with these indices in the test split."""
        return self._encode(self._mentions, "mentions", indices)

    def entities(self, positions: Sequence[int]) -> Encoded:
        """Encode the entities at these positions of the knowledge base."""
        return self._encode(self._entities, "entities", positions)

    def golds(self, index: int) -> list[int]:
        """Positions of a test mention's golds in the knowledge base, without those that are not in it."""
        known = self.data.entities.positions
        return [known[gold] for gold in self.data.mentions["test"][index].golds if gold in known]

    def seen(self, index: int) -> bool | None:
        """Whether a gold of a test mention was a gold in training; None if that is not known, or without a gold."""
        group = None if self._mentions.seen is None else int(self._mentions.seen[index])
        return {SEEN: True, UNSEEN: False}.get(NO_GOLD if group is None else group)

    @torch.no_grad()
    def score(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """Scores of aligned pairs from normed features: ``overall`` and each unit by name, ``[pairs]``."""
        matcher = self.model.matcher
        sides = (
            {name: unit.mention(mentions) for name, unit in matcher.named_units()},
            {name: unit.entity(entities) for name, unit in matcher.named_units()},
        )
        scores = matcher.pairs(*sides)
        return {"overall": matcher.overall(scores), **scores}

    def _encode(self, dataset: BatchDataset, side: Side, indices: Sequence[int]) -> Encoded:
        chunks = [list(indices[start : start + _AT_ONCE]) for start in range(0, len(indices), _AT_ONCE)]
        return encoded(self.model, side, map(dataset.__getitems__, chunks))

    def _mention_indices(self, ids: Sequence[str]) -> list[int]:
        """Index of each prediction's mention in the test split."""
        test_ids = [mention.id for mention in self.data.mentions["test"]]
        if test_ids[: len(ids)] == list(ids):
            return list(range(len(ids)))
        index_of = {id_: index for index, id_ in enumerate(test_ids)}
        if len(index_of) < len(test_ids) or not index_of.keys() >= set(ids):
            raise DataError(
                f"The predictions of {self.run.folder} are not of the test split in {self.data.root}: the mentions "
                f"differ. Test the run again: mimic-pl test --run {self.run.folder}"
            )
        return [index_of[id_] for id_ in ids]


def _tested(run: EvaluatedRun) -> str:
    """The checkpoint that was tested: a path from the run's folder, or by its name if an absolute one has moved."""
    stated = run.summary.get("checkpoint")
    if stated is None:
        return "best"
    path = run.folder / stated
    return str(path) if path.is_file() else path.name
