"""Hard negatives: entities that the model itself mistakes for the golds, mined from the index."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mimic_pl.data import MELDataModule
from mimic_pl.errors import ConfigError
from mimic_pl.evaluation import evaluation_index
from mimic_pl.model import MIMIC
from mimic_pl.ranking import Ranker


class HardNegatives(Callback):
    """Adds to every training batch, for each mention, one entity that ranks high and is wrong.

    At the start of an epoch the knowledge base is encoded with the present weights and ranked for all training
    mentions; the best-ranked entities that are no gold of a mention are its hard negatives. Each time the mention is
    trained on, one of them is drawn and stands behind the batch's golds: a negative for all mentions of the batch. A
    batch has up to twice as many entities to encode.

    Processes share the work, and what they find.

    Args:
        depth: How many of the best-ranked wrong entities a negative is drawn from.
        first_epoch: The first epoch with hard negatives, from 0; an untrained model mistakes anything for anything.
        every_n_epochs: Epochs from one mining to the next.

    Raises:
        ConfigError: A number that makes no sense.
    """

    def __init__(self, depth: int = 10, first_epoch: int = 1, every_n_epochs: int = 1) -> None:
        if depth < 1 or first_epoch < 0 or every_n_epochs < 1:
            raise ConfigError(
                f"HardNegatives takes depth >= 1, first_epoch >= 0 and every_n_epochs >= 1, not {depth}, {first_epoch} "
                f"and {every_n_epochs}."
            )
        self.depth = depth
        self.first_epoch = first_epoch
        self.every_n_epochs = every_n_epochs
        self._mined: Tensor | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Set the memory aside that loader processes share, before any of them starts.

        Raises:
            ConfigError: Training batches come from no knowledge base, or from several.
        """
        if stage != "fit":
            return
        if not isinstance(pl_module, MIMIC):
            raise ConfigError(f"HardNegatives needs a MIMIC to mine with, and the model is {type(pl_module).__name__}.")
        data = _training_data(trainer)
        size = len(data.mentions["train"]), self.depth
        self._mined = data.hard_negatives = torch.full(size, -1).share_memory_()  # type: ignore[no-untyped-call]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Mine, where it is due; the epoch's first batch is loaded after that."""
        since = trainer.current_epoch - self.first_epoch
        if since >= 0 and since % self.every_n_epochs == 0:
            assert isinstance(pl_module, MIMIC), "setup has seen to it"
            self._mine(trainer, pl_module)
            loop = trainer.fit_loop
            if trainer.current_epoch == 0 or loop.is_resuming:
                # Before the first epoch of a process, Lightning begins to load before this hook.
                iter(loop._data_fetcher)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        """What was mined, for epochs that go on from it."""
        return {} if self._mined is None else {"negatives": self._mined.clone()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what was mined.

        Raises:
            ConfigError: It is of other mentions, or of another depth.
        """
        if self._mined is None:
            return  # a test of a trained model mines nothing
        mined = state_dict["negatives"]
        if mined.shape != self._mined.shape:
            raise ConfigError(
                f"The checkpoint holds hard negatives {list(mined.shape)}, and there are {list(self._mined.shape)} to "
                "be mined (training mentions, depth). Resume with the data and the depth of the run."
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
            # Stable: the wrong ones first, in the order of their ranks.
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
            "HardNegatives mines one knowledge base, that of a MELDataModule, and the training data is "
            f"{type(data).__name__}. Leave the callback out."
        )
    return data
