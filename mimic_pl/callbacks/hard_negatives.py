"""Hard-negative mining: wrong entities that the current model ranks highest."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mimic_pl.data import MELDataModule
from mimic_pl.errors import ConfigError
from mimic_pl.evaluation import evaluation_index
from mimic_pl.model import MIMIC
from mimic_pl.ranges import COUNT, NATURAL, in_range
from mimic_pl.ranking import Ranker


class HardNegatives(Callback):
    """Adds a hard negative for each mention to every training batch.

    At the start of an epoch, the knowledge base is encoded with the current weights and ranked for all training
    mentions; the top-ranked entities that are not golds of a mention are its hard negatives. Each time the mention is
    trained on, one of them is drawn and appended to the batch's golds, as a negative for all mentions of the batch. So
    a batch has up to twice as many entities to encode.

    Mining is distributed over all processes, and its results are gathered.

    Args:
        depth: Number of top-ranked wrong entities from which a negative is drawn.
        first_epoch: First epoch with hard negatives, from 0; those of an untrained model are useless.
        every_n_epochs: Number of epochs between minings.

    Raises:
        ConfigError: A parameter is out of range.
    """

    @in_range(depth=COUNT, first_epoch=NATURAL, every_n_epochs=COUNT)
    def __init__(self, depth: int = 10, first_epoch: int = 1, every_n_epochs: int = 1) -> None:
        self.depth = depth
        self.first_epoch = first_epoch
        self.every_n_epochs = every_n_epochs
        self._mined: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Allocate memory shared with the loader processes, before any of them starts.

        Raises:
            ConfigError: The model is not a MIMIC, or the data is not that of a single MELDataModule.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, MIMIC):
            raise ConfigError(f"HardNegatives needs a MIMIC model, not {type(pl_module).__name__}.")
        data = _training_data(trainer)
        size = len(data.mentions["train"]), self.depth
        self._mined = data.hard_negatives = torch.full(size, -1).share_memory_()  # type: ignore[no-untyped-call]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mine if due, before the epoch's first batch is loaded."""
        since = trainer.current_epoch - self.first_epoch
        if since >= 0 and since % self.every_n_epochs == 0:
            assert isinstance(pl_module, MIMIC), "checked in setup"
            self._mine(trainer, pl_module)
            loop = trainer.fit_loop
            if trainer.current_epoch == 0 or loop.is_resuming:
                # Before the first epoch of a process, Lightning starts loading before this hook: restart it.
                iter(loop._data_fetcher)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """The mined negatives, for resumed epochs."""
        return {} if self._mined is None else {"negatives": self._mined.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the mined negatives.

        Raises:
            ConfigError: They are for other mentions, or of another depth.
        """
        if self._mined is None:
            return  # not training
        mined = state_dict["negatives"]
        if mined.shape != self._mined.shape:
            raise ConfigError(
                f"The checkpoint contains hard negatives of shape {list(mined.shape)}, but this run needs "
                f"{list(self._mined.shape)} (training mentions, depth). Resume with the data and the depth of the run."
            )
        self._mined.copy_(mined)

    def _mine(self, trainer: Trainer, model: MIMIC) -> None:
        assert self._mined is not None
        data = _training_data(trainer)
        index = evaluation_index(model, trainer, model.index_builder)
        widest = max(len(mention.golds) for mention in data.mentions["train"])
        ranker = Ranker(self.depth + widest, unit_ranks="cheap")
        indices, mined = [], []
        for batch, states in model.batch_encoder()(data.mining_dataloader(), "mentions", model.mention_states):
            top = ranker(model.matcher, states, index, batch["gold"]).top_entities
            wrong = ~(top[:, :, None] == batch["gold"][:, None, :]).any(dim=2)
            # Wrong entities first; the stable sort keeps their ranking.
            first = wrong.int().argsort(dim=1, descending=True, stable=True)[:, : self.depth]
            indices.append(batch["index"])
            mined.append(top.gather(1, first).where(wrong.gather(1, first), -1))
        for whose, negatives in index.processes.gather([torch.cat(indices), torch.cat(mined)]):
            counted = whose >= 0
            self._mined[whose[counted].cpu(), : negatives.shape[1]] = negatives[counted].cpu()


def _training_data(trainer: Trainer) -> MELDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, MELDataModule):
        raise ConfigError(
            "HardNegatives needs a MELDataModule, with a single knowledge base, but the training data is "
            f"{type(data).__name__}. Remove the callback."
        )
    return data
