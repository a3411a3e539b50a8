"""Collects ranked lists that are long enough to take golds out of them."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from mimic_pl.calibration import ScoredLists
from mimic_pl.data.protocol import Records, data_of
from mimic_pl.data.table import as_table
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.ranking import Ranker, Ranking


class ListCollector(Callback):
    """Collects the ranked lists of the mentions that ``validate`` or ``test`` evaluates.

    In the meantime the model's ranker keeps ``top_k`` + number of golds entities per mention, or more if it does so
    anyway. This does not change any rank.

    Args:
        top_k: Entities that a list without its golds has.
    """

    @in_range(top_k=COUNT)
    def __init__(self, top_k: int = 10) -> None:
        self.top_k = top_k
        self._ranker: Ranker | None = None
        self._golds: list[list[int]] = []
        self._num_entities = 0
        self._parts: list[tuple[torch.Tensor, ScoredLists]] = []

    def lists(self) -> ScoredLists | None:
        """The lists of all processes, each mention once, in the order of the split; collective.

        ``None`` if nothing was evaluated.
        """
        parts = [part for own in ProcessGroup().gather_objects(self._parts) for part in own]
        if not parts:
            return None
        indices, order = torch.cat([own for own, _ in parts]).sort(stable=True)
        first = torch.ones_like(order, dtype=torch.bool)
        first[1:] = indices[1:] != indices[:-1]
        return ScoredLists.joined([lists for _, lists in parts]).rows(order[first])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the validation split."""
        self.begin(trainer, pl_module, "val")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the test split."""
        self.begin(trainer, pl_module, "test")

    def on_validation_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Collect the lists of a batch."""
        self._add(outputs)

    def on_test_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *args: Any) -> None:
        """Collect the lists of a batch."""
        self._add(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its own ranker back."""
        self.restore(pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the model its own ranker back."""
        self.restore(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the model its own ranker back."""
        self.restore(pl_module)

    def begin(self, trainer: Trainer, model: LightningModule, split: str) -> None:
        """Start to collect the lists of a split.

        Raises:
            ConfigError: The model is not a MIMIC, or reranks its lists: the scores of a reranked list may depend on
                the golds in it.
        """
        if not isinstance(model, MIMIC) or model.matcher.reranks:
            raise ConfigError(
                f"{type(model.matcher if isinstance(model, MIMIC) else model).__name__} cannot be calibrated: only a "
                "MIMIC model that does not rerank has lists from which golds can be taken. Rank a knowledge base "
                "without the golds instead, and call mimic_pl.calibration.fit_calibration."
            )
        data = data_of(trainer, Records)
        known = as_table(data.entities).positions
        self._golds = [[known[gold] for gold in mention.golds if gold in known] for mention in data.mentions[split]]
        self._num_entities = len(data.entities)
        self.forget()
        self.keep(model, self.top_k + max(map(len, self._golds), default=0))

    def forget(self) -> None:
        """Forget the lists of an earlier evaluation."""
        self._parts = []

    def keep(self, model: MIMIC, entities: int) -> None:
        """Let the model's ranker keep at least this many entities per mention, until :meth:`restore`."""
        self._ranker = model.ranker
        model.ranker = copy.copy(model.ranker)
        model.ranker.top_k = max(model.ranker.top_k, entities)

    def restore(self, model: LightningModule) -> None:
        """Give the model its own ranker back."""
        if self._ranker is not None:
            assert isinstance(model, MIMIC), "only its ranker was replaced"
            model.ranker, self._ranker = self._ranker, None

    def _add(self, outputs: Mapping[str, Any]) -> None:
        if self._ranker is None:
            return
        ranking: Ranking = outputs["ranking"]
        indices = outputs["index"].cpu()
        own = [self._golds[index] for index in indices.tolist()]
        width = max(map(len, own), default=0) or 1
        gold = torch.tensor([golds + [-1] * (width - len(golds)) for golds in own], dtype=torch.int64).view(-1, width)
        self._parts.append((indices, ScoredLists.of_ranking(ranking, gold, self._num_entities)))
