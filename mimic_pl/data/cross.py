"""Cross-data-set evaluation: train on some data sets, test on another, each with its own knowledge base."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

from torch.utils.data import DataLoader, Dataset

from mimic_pl.batch import Batch
from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.datamodule import MELDataModule
from mimic_pl.data.dataset import TrainingDataset
from mimic_pl.data.loader import training_loader
from mimic_pl.data.sampler import MultiDatasetSampler, resume_point
from mimic_pl.errors import ConfigError
from mimic_pl.ranges import NATURAL, SEED, in_range


class CrossDataModule(BaseDataModule):
    """Trains on one or more data sets and tests on another.

    - Training: every batch comes from one set, with that set's batch size, so that the negatives are entities of one
      knowledge base. An epoch contains every training mention of every set once; the batches of all sets are shuffled.
      A batch's ``index`` and ``gold`` refer to the mentions and the knowledge base of its set.
    - Validation: the dev split of one of the training sets, in that set's knowledge base. The target set has no
      influence on which checkpoint is best.
    - ``test`` and ``predict``: the target set, in its knowledge base. A gold counts as seen if its ``id`` was a gold in
      the training split of a training set.

    Published results of the target set are not shown, since the model was trained on other data.

    Args:
        train: The training sets.
        test: The target set.
        validate_on: Index in ``train`` of the set to validate on.
        seed: Seed of the order of the sets' batches; the order within a set depends on the set's own seed.

    Raises:
        ConfigError: There is no training set, the target set is among them, or ``validate_on`` is out of range.

    Example:
        >>> data = CrossDataModule([RichpediaMEL("r"), WikiDiverse("d")], test=WikiMEL("w"))  # doctest: +SKIP
    """

    @in_range(validate_on=NATURAL, seed=SEED)
    def __init__(self, train: list[MELDataModule], test: MELDataModule, validate_on: int = 0, seed: int = 43) -> None:
        if not train:
            raise ConfigError("data.train names no data set to train on. Name at least one.")
        if not 0 <= validate_on < len(train):
            raise ConfigError(f"data.validate_on is {validate_on}; it must be from 0 to {len(train) - 1}.")
        same = [part.root for part in train if part.folder.resolve() == test.folder.resolve()]
        if same:
            raise ConfigError(
                f"{same[0]} is the target set and also a training set. Cross-data-set results need a target that was "
                "not trained on: remove it from data.train."
            )
        super().__init__()
        self.training_sets = train
        self.target = test
        self.validating = train[validate_on]
        self.seed = seed
        self._ranked = test

    @property
    def parts(self) -> tuple[MELDataModule, ...]:
        """The training sets, followed by the target."""
        return (*self.training_sets, self.target)

    @property
    def title(self) -> str:
        """The sets by folder name: ``WikiMEL + RichpediaMEL to WikiDiverse``."""
        return f"{' + '.join(part.folder.name for part in self.training_sets)} to {self.target.folder.name}"

    @property
    def ranked(self) -> MELDataModule:
        """The set whose knowledge base is ranked: the validation set after ``setup("fit")``, otherwise the target."""
        return self._ranked

    def prepare_data(self) -> None:
        """Prepare every set."""
        for part in self.parts:
            part.prepare_data()

    def setup(self, stage: str) -> None:
        """Read and tokenize the data of a stage, each set with a processor fitted to its own knowledge base."""
        for part in self.parts:
            part.trainer = self.trainer
            if not part.has_processor:
                part.processor = self.processor
        self._ranked = self.validating if stage in ("fit", "validate") else self.target
        if stage == "fit":
            for part in self.training_sets:
                part.setup("fit" if part is self.validating else "train")
        else:
            if stage == "test":
                self.target.seen_golds = self.seen_golds
            self._ranked.setup(stage)

    @cached_property
    def seen_golds(self) -> frozenset[str] | None:
        """``id`` of every gold in the training split of any training set."""
        known = [part.seen_golds for part in self.training_sets]
        return frozenset().union(*(golds for golds in known if golds is not None)) if any(known) else None

    def training_sample(self) -> Batch:
        """A training batch of at most two pairs, from the first set."""
        return self.training_sets[0].training_sample()

    def train_dataloader(self) -> DataLoader[Batch]:
        """Batches of all training sets, each of one set.

        Raises:
            ConfigError: The Trainer has ``overfit_batches``.
        """
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            raise ConfigError("CrossDataModule does not support overfit_batches. Use a single data set.")
        sets = [part.training_dataset() for part in self.training_sets]
        own = [
            part.training_sampler(items, *self.world()) for items, part in zip(sets, self.training_sets, strict=True)
        ]
        sampler = MultiDatasetSampler(own, self.seed)
        sampler.start_at(*resume_point(self.trainer))
        return training_loader(MultiDataset(sets), sampler, max(part.num_workers for part in self.training_sets))

    def val_dataloader(self) -> DataLoader[Batch]:
        """Mentions of the validation set's dev split."""
        return self.validating.val_dataloader()

    def test_dataloader(self) -> DataLoader[Batch]:
        """Mentions of the target's test split."""
        return self.target.test_dataloader()

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Mentions to link in the target's knowledge base."""
        return self.target.predict_dataloader()


class MultiDataset(Dataset[Batch]):
    """Several training sets; each item is a batch of one set.

    See :class:`~mimic_pl.data.sampler.MultiDatasetSampler`.
    """

    def __init__(self, sets: Sequence[TrainingDataset]) -> None:
        self.sets = sets

    def __len__(self) -> int:
        """Number of items in all sets."""
        return sum(map(len, self.sets))

    def __getitem__(self, batch: tuple[int, list[int]]) -> Batch:
        """The batch for a set's number and addresses in that set."""
        number, addresses = batch
        return self.sets[number].__getitems__(addresses)
