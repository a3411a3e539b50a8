"""A tested run with its model and data: features of chosen mentions and entities, as the units get them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.data.dataset import BatchDataset
from mimic_pl.encoding import Side
from mimic_pl.errors import DataError
from mimic_pl.features import Features
from mimic_pl.report.evaluated_run import EvaluatedRun
from mimic_pl.runs import load_run

_AT_ONCE = 64
"""Mentions or entities that are encoded together."""


class Encoded(NamedTuple):
    """One side's chosen records.

    Attributes:
        features: After the shared norms.
        input_ids: Tokens of their texts, int64 ``[n, text_tokens]``.
        attention_mask: 1 for a token, 0 for padding, int64 ``[n, text_tokens]``.
    """

    features: Features
    input_ids: Tensor
    attention_mask: Tensor


class LoadedRun:
    """The model and the data of a run, ready to look at single mentions.

    Args:
        run: Its checkpoint is the one that was tested.

    Raises:
        ConfigError: It has no checkpoint, or its data is not where its configuration says.
        DataError: The test split is not the one that was tested.
    """

    def __init__(self, run: EvaluatedRun) -> None:
        tested = Path(run.summary.get("checkpoint") or "").name
        self.run = run
        self.model, datamodule = load_run(run.folder, "last" if tested.startswith("last") else "best")
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")
        datamodule.setup("test")
        self.data = datamodule.ranked
        self._mentions = self.data.dataset("test")
        self._entities = self.data.entity_dataset
        self.places = self._places(run.predictions.ids)

    def mentions(self, indices: Sequence[int]) -> Encoded:
        """Encode the test mentions at these places of the data set."""
        return self._encode(self._mentions, "mentions", indices)

    def entities(self, positions: Sequence[int]) -> Encoded:
        """Encode the entities at these positions of the knowledge base."""
        return self._encode(self._entities, "entities", positions)

    def golds(self, index: int) -> list[int]:
        """Positions of a test mention's golds that are in the knowledge base."""
        known = self.data.entities.positions
        return [known[gold] for gold in self.data.mentions["test"][index].golds if gold in known]

    @torch.no_grad()
    def score(self, mentions: Features, entities: Features) -> dict[str, Tensor]:
        """Scores of aligned pairs from normed features: ``overall`` and each unit by name, ``[pairs]``."""
        matcher = self.model.matcher
        sides = (
            {name: unit.mention(mentions) for name, unit in matcher.named_units()},
            {name: unit.entity(entities) for name, unit in matcher.named_units()},
        )
        scores = matcher.pairs(*sides)
        return {"overall": matcher.combine(scores), **scores}

    def _encode(self, dataset: BatchDataset, side: Side, indices: Sequence[int]) -> Encoded:
        chunks = [list(indices[start : start + _AT_ONCE]) for start in range(0, len(indices), _AT_ONCE)]
        parts: list[Features] = []
        ids, masks = [], []
        for batch, features in self.model.batch_encoder()(map(dataset.__getitems__, chunks), side, self.model.encode):
            parts.append(self.model.matcher.norm(features))
            ids.append(batch[side]["input_ids"].cpu())
            masks.append(batch[side]["attention_mask"].cpu())
        return Encoded(Features.joined(parts), torch.cat(ids), torch.cat(masks))

    def _places(self, ids: Sequence[str]) -> list[int]:
        """For each prediction the place of its mention in the test split."""
        own = [mention.id for mention in self.data.mentions["test"]]
        if own[: len(ids)] == list(ids):
            return list(range(len(ids)))
        place = {id_: index for index, id_ in enumerate(own)}
        if len(place) < len(own) or not place.keys() >= set(ids):
            raise DataError(
                f"The predictions of {self.run.folder} are not of the test split that lies in {self.data.root}: other "
                f"mentions. Test the run again: mimic-pl test --run {self.run.folder}"
            )
        return [place[id_] for id_ in ids]
