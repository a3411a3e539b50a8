"""Protocols: what MIMIC and its callbacks require of a data module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from lightning.pytorch import Trainer
from PIL import Image
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch
from mimic_pl.errors import ConfigError
from mimic_pl.records import Entity, Mention

T = TypeVar("T")


@runtime_checkable
class Records(Protocol):
    """A knowledge base and the mentions that are linked to it.

    A data module with several data sets, such as :class:`~mimic_pl.CrossDataModule`, exposes this one as ``ranked``.
    """

    @property
    def entities(self) -> Sequence[Entity]:
        """The knowledge base, in the order of positions."""

    @property
    def mentions(self) -> Mapping[str, Sequence[Mention]]:
        """The mentions by split: ``val``, ``test``, ``predict``, ``train``."""


@runtime_checkable
class RankedData(Records, Protocol):
    """A data module for evaluation.

    :class:`~mimic_pl.MELDataModule` implements it. A custom LightningDataModule needs these members, and must finish
    its batches with the model's processor: ``on_after_batch_transfer`` returns ``processor.finish(batch)``.
    """

    def entity_dataloader(self, by_length: bool = False, first: int = 0) -> DataLoader[Batch]:
        """This process's shard of the knowledge base; see :meth:`MELDataModule.entity_dataloader`."""

    def describe_entities(self) -> dict[str, str]:
        """Everything that determines the states of the entities, to check whether an index was built from it."""


@runtime_checkable
class TrainingData(Protocol):
    """A data module for training on several processes."""

    def training_sample(self) -> Batch:
        """A training batch of at most two pairs, in the format of the training loader."""


@runtime_checkable
class ImageData(Records, Protocol):
    """Records with images for display."""

    def entity_image(self, entity: Entity) -> Image.Image | None:
        """An entity's first image that opens."""

    def mention_image(self, mention: Mention) -> Image.Image | None:
        """A mention's image, if it opens."""


def data_of(trainer: Trainer, needed: type[T]) -> T:
    """The data module of a Trainer, or its data set whose knowledge base is ranked.

    Args:
        trainer: The Trainer.
        needed: One of the protocols above.

    Raises:
        ConfigError: The Trainer was called with plain loaders, or with a data module that lacks some members.
    """
    datamodule = getattr(trainer, "datamodule", None)
    data = getattr(datamodule, "ranked", datamodule)
    if not isinstance(data, needed):
        members = sorted(name for name in dir(needed) if not name.startswith("_"))
        missing = [name for name in members if not hasattr(data, name)]
        raise ConfigError(
            "Ranking needs the knowledge base, which comes from a data module: call the Trainer with datamodule=..., "
            f"for example mimic_pl.RichpediaMEL(root). {type(data).__name__} lacks {', '.join(missing)}; see "
            f"mimic_pl.data.{needed.__name__}."
        )
    return data
