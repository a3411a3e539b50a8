"""What MIMIC and its callbacks need of a data module."""

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
    """A knowledge base, and the mentions that are ranked in it.

    Of a data module that is made of several, such as :class:`~mimic_pl.CrossDataModule`, the one that it names as
    ``ranked`` is asked.
    """

    @property
    def entities(self) -> Sequence[Entity]:
        """The knowledge base, in the order that positions count."""

    @property
    def mentions(self) -> Mapping[str, Sequence[Mention]]:
        """The mentions by split: ``val``, ``test``, ``predict``, ``train``."""


@runtime_checkable
class RankedData(Records, Protocol):
    """What evaluation needs of a data module.

    :class:`~mimic_pl.MELDataModule` has it. A LightningDataModule of your own has these members, and finishes its
    batches with the model's processor: ``on_after_batch_transfer`` returns ``processor.finish(batch)``.
    """

    def entity_dataloader(self, by_length: bool = False, first: int = 0) -> DataLoader[Batch]:
        """This process's entities of the knowledge base; see :meth:`MELDataModule.entity_dataloader`."""

    def describe_entities(self) -> dict[str, str]:
        """What decides the states of the entities, to tell whether an index was made from the same."""


@runtime_checkable
class TrainingData(Protocol):
    """What training on several processes needs of a data module."""

    def training_sample(self) -> Batch:
        """A training batch of at most two pairs, as the training loader makes them."""


@runtime_checkable
class ImageData(Records, Protocol):
    """Records whose images can be shown."""

    def entity_image(self, entity: Entity) -> Image.Image | None:
        """An entity's first image that opens."""

    def mention_image(self, mention: Mention) -> Image.Image | None:
        """A mention's image, if it opens."""


def data_of(trainer: Trainer, needed: type[T]) -> T:
    """The data module of a Trainer, or the part of it whose knowledge base is ranked.

    Args:
        trainer: The Trainer.
        needed: One of the protocols above.

    Raises:
        ConfigError: The Trainer was given bare loaders, or a data module that lacks some of the members.
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
