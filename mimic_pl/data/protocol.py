"""What MIMIC and its callbacks need of a data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor
from mimic_pl.records import Entity, Mention


@runtime_checkable
class RankedData(Protocol):
    """A knowledge base, and the mentions that are ranked in it.

    :class:`~mimic_pl.MELDataModule` is one. So is any LightningDataModule of your own with these members; training on
    several processes needs :class:`TrainingData` as well. A data module that is made of several, such as
    :class:`~mimic_pl.CrossDataModule`, names as ``ranked`` the one whose knowledge base is ranked.

    """

    @property
    def entities(self) -> Sequence[Entity]:
        """The knowledge base, in the order that positions count."""

    @property
    def mentions(self) -> Mapping[str, Sequence[Mention]]:
        """The mentions by split: ``val``, ``test``, ``predict``, ``train``."""

    @property
    def processor(self) -> Processor:
        """What made the inputs, fitted to the knowledge base."""

    def entity_dataloader(self, by_length: bool = False, first: int = 0) -> DataLoader[Batch]:
        """This process's entities of the knowledge base; see :meth:`MELDataModule.entity_dataloader`."""

    def describe_entities(self) -> dict[str, str]:
        """What decides the states of the entities, to tell whether an index was made from the same."""


@runtime_checkable
class TrainingData(Protocol):
    """What MIMIC needs of a data module to train on several processes."""

    def training_sample(self) -> Batch:
        """A training batch of at most two pairs, as the training loader makes them."""


def ranked_data(trainer: Trainer) -> RankedData:
    """The data whose knowledge base a Trainer's model ranks.

    Raises:
        ConfigError: The Trainer was given bare loaders, or a data module without a knowledge base.
    """
    datamodule = getattr(trainer, "datamodule", None)
    data = getattr(datamodule, "ranked", datamodule)
    if not isinstance(data, RankedData):
        raise ConfigError(
            "Ranking needs the knowledge base, which comes from a data module with the members of "
            "mimic_pl.data.RankedData (entities, mentions, processor, entity_dataloader, describe_entities). Call the "
            "Trainer with datamodule=..., for example mimic_pl.RichpediaMEL(root)."
        )
    return data
