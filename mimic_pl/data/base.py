"""Base class of the data modules."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor

if TYPE_CHECKING:
    from mimic_pl.data.datamodule import MELDataModule


class BaseDataModule(LightningDataModule):
    """A data module for MIMIC, with one or several data sets."""

    def __init__(self) -> None:
        super().__init__()
        self._processor: Processor | None = None

    @property
    @abstractmethod
    def parts(self) -> tuple[MELDataModule, ...]:
        """The data sets of this data module."""

    @property
    @abstractmethod
    def ranked(self) -> MELDataModule:
        """The data set whose knowledge base is ranked."""

    @property
    @abstractmethod
    def title(self) -> str:
        """Name of the data in results."""

    @abstractmethod
    def training_sample(self) -> Batch:
        """A training batch of at most two pairs."""

    @abstractmethod
    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled pairs of a mention and its gold entity."""

    @property
    def processor(self) -> Processor:
        """The processor that turns records into model inputs: the model's, or one set explicitly without a Trainer.

        Raises:
            ConfigError: There is no processor.
        """
        if self._processor is None:
            module = self.trainer.lightning_module if self.trainer is not None else None
            processor = getattr(module, "processor", None)
            if not isinstance(processor, Processor):
                raise ConfigError(
                    "The data module has no processor yet: it comes from the Trainer's model. Without a Trainer, set "
                    "it: datamodule.processor = model.processor"
                )
            self._processor = processor
        return self._processor

    @processor.setter
    def processor(self, processor: Processor) -> None:
        self._processor = processor

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalise the images on the device, and count failed ones."""
        return self.processor.finish(batch)

    def teardown(self, stage: str) -> None:
        """Log which images could not be used."""
        self.processor.log_failures()

    @property
    def has_processor(self) -> bool:
        """Whether the processor was set."""
        return self._processor is not None

    def world(self) -> tuple[int, int]:
        """World size and global rank."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank
