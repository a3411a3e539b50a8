"""The LightningDataModule of a data set in the published layout."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mimic_pl.batch import Batch
from mimic_pl.data.dataset import (
    EntityDataset,
    InputTransform,
    MentionDataset,
    TrainingDataset,
    collate,
    collate_cut,
)
from mimic_pl.data.degradation import Degradation, DegradedPixels, ImageDegradation
from mimic_pl.data.file_keys import KEY_BYTES
from mimic_pl.data.filtering import with_usable_images
from mimic_pl.data.folder import MIMICFolder, MissingSplitError
from mimic_pl.data.image_cache import Chain, ImageCache
from mimic_pl.data.loader import loader_kwargs, training_loader
from mimic_pl.data.pixels import PixelSource
from mimic_pl.data.sampler import EntitySampler, EvalSampler, TrainSampler, resume_point
from mimic_pl.data.similar_names import shared_words
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.data.training_split import golds_of, seeded_fold, seeded_fraction
from mimic_pl.data.transforms import Augment, DropModality
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.files import cache_folder
from mimic_pl.processor.images import ImageFolder
from mimic_pl.ranges import COUNT, FRACTION, NATURAL, SEED, Range, in_range, one_of
from mimic_pl.records import Mention

Batching = Literal["random", "similar_names"]
"""Which training mentions come together in a batch."""

_log = logging.getLogger(__name__)

_STAGES = {
    "fit": ("train", "val"),
    "train": ("train",),  # not a Trainer stage: for training sets of CrossDataModule that do not validate
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MELDataModule(MIMICFolder):
    """Any data set in the published layout: a knowledge base, three splits of mentions, two image folders.

    The folder contains ``kb_entity.json``, ``{name}_train.json``, ``{name}_dev.json``, ``{name}_test.json``,
    ``kb_image/``, ``mention_images/``, and optionally ``qid2id.json``. Instead of ``.json``, a file may be JSON Lines,
    CSV, TSV or Parquet (see :mod:`mimic_pl.formats`). To read another layout, override :meth:`read_entities` and
    :meth:`read_mentions`.

    The model's :class:`~mimic_pl.processor.Processor` decides what the model sees of a record; the data module handles
    files, splits, samplers and loaders.

    Args:
        root: The folder.
        name: Prefix of the split files' names; the folder's name by default.
        batch_size: Mentions per training batch.
        eval_batch_size: Mentions ranked at once; each batch is scored against the whole knowledge base.
        entity_batch_size: Entities encoded at once.
        num_workers: Loader processes.
        seed: Seed of the training order and of random choices.
        predict_file: File of mentions to link, in any of the :mod:`~mimic_pl.formats`, or a pipe; the test split by
            default.
        image_cache: Folder in which decoded images are cached as uint8 pixels at the model's size (150 kB each at 224 x
            224), so that later epochs, runs and processes need not decode them again; data sets may share it. By
            default ``auto``: ``~/.cache/mimic_pl/images`` (or in ``XDG_CACHE_HOME``, if set), unless it would take more
            than half of the free disk space. The size is logged before writing; ``None`` disables the cache. Delete
            the folder only when no run uses it. On a network file system, use a separate folder for each machine:
            LMDB, which stores the images, locks within one machine.
        augmentation: Random transform of the images of training batches, of both mentions and entities: a module from
            uint8 ``[3, S, S]`` to uint8 ``[3, S, S]``, such as a composition of :mod:`torchvision.transforms.v2`; none
            by default.
        batching: ``random`` batches, or ``similar_names``: mentions that share a word of their golds' names are put in
            the same batch, where each gold is a hard negative of the others, at no cost. (Topic-aware sampling, as in
            TAS-B, with words of names as topics.)
        augmentation_versions: Number of different augmentations of a training image, one an epoch in turn. By default
            those of every epoch are new; a few versions are enough for a frozen encoder, which then encodes each once.
        modality_dropout: Probability that a training mention loses its image or its text in an epoch.
        degradation: Degrades the mentions of validation, test and prediction (see
            :class:`~mimic_pl.data.degradation.Degradation`); training and the knowledge base are unchanged.
        train_fraction: Fraction of the training mentions to train on: 0.1 for a tenth, drawn by ``seed``; a larger
            fraction includes the mentions of a smaller one.
        entity_image_folder: Folder that the names of the entities' images are relative to; absolute paths inside it are
            accepted, too. By default ``auto``: ``kb_image`` in ``root``; ``None`` uses no images of entities.
        mention_image_folder: The same for mentions, by default ``mention_images`` or ``mention_image`` in ``root``.
        left_out_fold: Leave out a fold of the training mentions, given by its number from 0 and the number of folds:
            ``[0, 2]`` for the first of two halves, drawn by ``seed``. Runs that leave out each fold in turn list
            candidates for mentions that they were not trained on (``mimic-pl train-reranker --fold_runs``).

    Raises:
        ConfigError: An argument is out of range.
    """

    mentions: dict[str, list[Mention]]
    entity_dataset: EntityDataset

    @in_range(
        batch_size=COUNT,
        eval_batch_size=COUNT,
        entity_batch_size=COUNT,
        num_workers=NATURAL,
        seed=SEED,
        augmentation_versions=COUNT,
        batching=one_of(Batching),
        modality_dropout=FRACTION,
        train_fraction=Range(0, 1, whole=False, above=True),
    )
    def __init__(
        self,
        root: str,
        name: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        entity_batch_size: int = 256,
        num_workers: int = 2,
        seed: int = 43,
        predict_file: str | None = None,
        image_cache: str | None = "auto",
        augmentation: nn.Module | None = None,
        modality_dropout: float = 0.0,
        degradation: Degradation | None = None,
        train_fraction: float = 1.0,
        entity_image_folder: str | None = "auto",
        mention_image_folder: str | None = "auto",
        augmentation_versions: int | None = None,
        batching: Batching = "random",
        left_out_fold: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        if left_out_fold is not None and not 0 <= left_out_fold[0] < left_out_fold[1] > 1:
            raise ConfigError(
                f"left_out_fold is {list(left_out_fold)}, but must be the number of a fold from 0 and the number of "
                "folds, at least 2, such as [0, 2] or [1, 2]."
            )
        self.root = root
        self.name = name
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.entity_batch_size = entity_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.predict_file = predict_file
        self.image_cache = image_cache
        self.augmentation = augmentation
        self.modality_dropout = modality_dropout
        self.degradation = degradation
        self.train_fraction = train_fraction
        self.left_out_fold = left_out_fold
        self.entity_image_folder = entity_image_folder
        self.mention_image_folder = mention_image_folder
        self.augmentation_versions = augmentation_versions
        self.batching: Batching = batching
        self.mentions = {}
        self.hard_negatives: Tensor | None = None
        self._datasets: dict[str, MentionDataset] = {}
        self._description: dict[str, str] | None = None

    @property
    def parts(self) -> tuple[MELDataModule, ...]:
        """The data sets of this data module: itself."""
        return (self,)

    @property
    def ranked(self) -> MELDataModule:
        """The data set whose knowledge base is ranked: itself."""
        return self

    @property
    def title(self) -> str:
        """Name of the data set in results."""
        return type(self).__name__

    # ---- Lightning's hooks --------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Read and tokenize the data of a stage."""
        self.check_root(self.root)
        self._description = None
        if not hasattr(self, "entity_dataset"):
            self.processor = self.processor.fit(self.entities)
            if self.processor.modalities != "text":
                self.require_an_image("entity", self.entity_images, (entity.image_files for entity in self.entities))
            self.entity_dataset = EntityDataset(self.entities, self.processor, self._pixels(self.entity_images))
        splits = _STAGES[stage]
        if stage == "fit" and self.trainer is not None and self.trainer.limit_val_batches == 0:
            splits = ("train",)  # no validation, for which there may be no file
        for split in splits:
            if split not in self._datasets:
                self._add_split(split)
        if self._cache is not None and self.processor.modalities != "text":
            self._cache.fill(partial(self._images_of, splits))

    @cached_property
    def entities(self) -> EntityTable:
        """The knowledge base, read on first access."""
        self.check_root(self.root)
        entities = as_table(self.read_entities())
        return entities.without_images() if self.entity_image_folder is None else entities

    @cached_property
    def _cache(self) -> ImageCache | None:
        if self.image_cache is None:
            return None
        by_default = self.image_cache == "auto"
        folder = cache_folder("images") if by_default else Path(self.image_cache)
        if folder is None:
            return None
        disk_fraction = 0.5 if by_default else 1.0
        return ImageCache(folder, self.processor.image_processor, self.processor.reduced_decoding, disk_fraction)

    def _pixels(self, images: ImageFolder) -> PixelSource:
        processor = self.processor
        blank = processor.modalities == "text"
        return PixelSource(images, processor.image_processor, processor.reduced_decoding, self._cache, blank=blank)

    def _images_of(self, splits: Iterable[str]) -> Iterator[Chain]:
        """Images needed by these splits: of every mention, the first of a ranked entity, all of a training gold."""
        for split in splits:
            for mention in self.mentions[split]:
                if mention.image_files:
                    yield self.mention_images, mention.image_files
        if set(splits) != {"train"}:
            for entity in self.entities:
                yield self.entity_images, entity.image_files
        if "train" in splits:
            for gold in {gold for golds in self._datasets["train"].golds for gold in golds}:
                for image in self.entities[gold].image_files:
                    yield self.entity_images, (image,)

    def _read_all(self, split: str) -> list[Mention]:
        mentions = self.split_mentions(split)
        return [replace(mention, image=None) for mention in mentions] if self.mention_image_folder is None else mentions

    def _read_split(self, split: str) -> list[Mention]:
        mentions = self._read_all(split)
        return self._folds(mentions)[0] if split == "train" else mentions

    def _folds(self, mentions: list[Mention]) -> tuple[list[Mention], list[Mention]]:
        """The mentions to train on, and those of :attr:`left_out_fold`."""
        mentions = seeded_fraction(mentions, self.train_fraction, self.seed)
        return (mentions, []) if self.left_out_fold is None else seeded_fold(mentions, *self.left_out_fold, self.seed)

    def left_out_mentions(self) -> list[Mention]:
        """The training mentions of :attr:`left_out_fold`; none without one."""
        return self._folds(self._read_all("train"))[1]

    @cached_property
    def seen_golds(self) -> frozenset[str] | None:
        """``qid`` of every gold in the training split, ``None`` without one; set it for a model trained on other data.

        ``test`` reports mentions with seen and unseen golds separately.
        """
        try:
            return golds_of(self.mentions.get("train") or self._read_split("train"))
        except MissingSplitError:
            return None

    def _add_split(self, split: str) -> None:
        mentions = self._read_split(split)
        if not mentions:
            raise DataError(f"The {split} split of {self.folder} contains no mentions.")
        self.mentions[split] = mentions
        if self.processor.modalities != "text":
            self.require_an_image("mention", self.mention_images, (mention.image_files for mention in mentions))
        known = self.entities.positions
        nil = sum(not mention.golds for mention in mentions)
        unknown = sum(bool(m.golds) and not any(gold in known for gold in m.golds) for m in mentions)
        if (nil or unknown) and split != "predict":
            outcome = "excluded from training" if split == "train" else "counted as not found"
            _log.warning(
                f"{split}: of {len(mentions)} mentions, {nil} have no gold (nil) and {unknown} have a gold that is not "
                f"in the knowledge base; they are {outcome}."
            )
        self._datasets[split] = self._mention_dataset(split, mentions, self._pixels(self.mention_images))

    def _mention_dataset(self, split: str, mentions: list[Mention], pixels: PixelSource) -> MentionDataset:
        seen = self.seen_golds if split == "test" else None
        return MentionDataset(mentions, self.entities.positions, self.processor, pixels, f"{split} mentions", seen)

    def _degraded(self, split: str, degradation: Degradation) -> MentionDataset:
        pixels = self._pixels(self.mention_images)
        if isinstance(degradation, ImageDegradation) and not pixels.blank:
            pixels = DegradedPixels(pixels.folder, pixels.image_processor, degradation, pixels.reduced)
        return self._mention_dataset(split, degradation.mentions(self.mentions[split]), pixels)

    def dataset(self, split: str) -> MentionDataset:
        """The mentions of a split that was set up, with the :attr:`degradation` applied, if any."""
        if self.degradation is None or split == "train":
            return self._datasets[split]
        return self._degraded(split, self.degradation)

    def training_dataset(self) -> TrainingDataset:
        """Pairs of a mention and its gold entity.

        Raises:
            DataError: There are no such pairs.
        """
        mentions = self._datasets["train"]
        kept = [index for index, golds in enumerate(mentions.golds) if golds]
        if not kept:
            raise DataError(f"No training mention of {self.folder} has a gold in the knowledge base.")
        if self.processor.image_policy == "drop":
            kept = self._with_images(mentions, kept)
        return TrainingDataset(
            mentions,
            self.entity_dataset,
            kept,
            self.seed,
            self._training_transforms(),
            self.hard_negatives,
            self.augmentation_versions,
        )

    def training_sample(self) -> Batch:
        """A training batch of at most two pairs."""
        dataset = self.training_dataset()
        return dataset.__getitems__(list(range(min(2, len(dataset)))))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled pairs of a mention and its gold entity; in order if the Trainer has ``overfit_batches``."""
        dataset = self.training_dataset()
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._in_order(dataset, self.batch_size)
        sampler = self.training_sampler(dataset, *self.world())
        sampler.start_at(*resume_point(self.trainer))
        return training_loader(dataset, sampler, self.num_workers)

    def training_sampler(self, dataset: TrainingDataset, processes: int, rank: int) -> TrainSampler:
        """Sampler of the training batches; see :attr:`batching`."""
        similar = self.batching == "similar_names"
        groups = shared_words(*dataset.mentions_and_names(), processes * self.batch_size) if similar else None
        return TrainSampler(dataset, self.batch_size, processes, rank, self.seed, groups)

    def mining_dataloader(self) -> DataLoader[Batch]:
        """The training mentions in order, without augmentation or dropout, for mining hard negatives."""
        return self._in_order(self._datasets["train"], self.eval_batch_size)

    def _training_transforms(self) -> dict[str, list[InputTransform]]:
        transforms: dict[str, list[InputTransform]] = {"mentions": [], "entities": []}
        if self.augmentation is not None:
            for own in transforms.values():
                own.append(Augment(self.augmentation))
        if self.modality_dropout:
            transforms["mentions"].append(DropModality(self.modality_dropout, self.processor))
        return transforms

    def _with_images(self, mentions: MentionDataset, kept: list[int]) -> list[int]:
        left, failed = with_usable_images(
            (
                (i, mentions.mentions[i].image_files, [self.entities[g].image_files for g in mentions.golds[i]])
                for i in kept
            ),
            self.mention_images,
            self.entity_images,
        )
        self.processor.report.add(failed)
        if not left:
            raise DataError(
                f"All training mentions of {self.folder} are dropped because of their images. `mimic-pl doctor` lists "
                "the problems; --model.processor.image_policy blank trains without these images."
            )
        if len(left) < len(kept):
            _log.warning(f"{len(kept) - len(left)} of {len(kept)} training mentions are dropped: unusable images.")
        return left

    def val_dataloader(self) -> DataLoader[Batch]:
        """Mentions of the validation split."""
        if "val" not in self._datasets:  # LearningRateFinder sets limit_val_batches after the setup
            self._add_split("val")
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Mentions of the test split."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Batch]:
        """Mentions to link."""
        return self._eval_loader("predict")

    def describe_entities(self) -> dict[str, str]:
        """Description of the knowledge base as the model sees it, to check whether an index was built from it.

        It includes the content of all images. A file is read only if the image cache does not know it, or if it has
        changed since, which includes its modification time and location. During training it is determined once: a
        validation always builds its index anew.
        """
        fitting = self.trainer is not None and self.trainer.state.fn == "fit"
        if self._description is None or not fitting:
            self._description = self._describe_entities()
        return self._description

    def _describe_entities(self) -> dict[str, str]:
        tokens, pixels = self.entity_dataset.side.tokens, self.entity_dataset.side.pixels
        digest = hashlib.sha256(tokens.ids.tobytes() + tokens.lengths.tobytes())
        for entity in self.entities:
            # The whole record: features may read what the tokens truncate, and an index on disk contains it.
            record = [entity.id, entity.name, entity.fields, entity.image_files]
            digest.update(json.dumps(record, sort_keys=True).encode())
            for name, array in entity.arrays.items():
                digest.update(name.encode() + np.asarray(array).tobytes())
        images = hashlib.sha256()
        for content in pixels.digests(name for entity in self.entities for name in entity.image_files):
            images.update(content or bytes(KEY_BYTES))
        return {
            **self.processor.describe(),
            "knowledge base": digest.hexdigest(),
            "image preprocessing": pixels.preprocessing(),
            "content of entity images": images.hexdigest(),
        }

    def entity_dataloader(self, by_length: bool = False, first: int = 0) -> DataLoader[Batch]:
        """This process's shard of the knowledge base; its sampler's ``positions`` are those of its entities.

        Args:
            by_length: Sort by length, longest texts first, and cut each batch's ``input_ids`` and ``attention_mask`` to
                its longest text; ``index`` (int64 ``[batch]``) gives the positions. Features are unchanged by this
                only if the encoder masks padding.
            first: Without ``by_length``, start at the batch that contains this entity of the shard.
        """
        dataset = self.entity_dataset
        sampler = EntitySampler(
            len(dataset),
            self.entity_batch_size,
            *self.world(),
            lengths=dataset.side.tokens.lengths if by_length else None,
            first=first,
        )
        return self._loader(dataset, sampler, collate_fn=collate_cut if by_length else collate)

    # ---- loaders ------------------------------------------------------------------------------------------------

    def _eval_loader(self, split: str) -> DataLoader[Batch]:
        return self._in_order(self.dataset(split), self.eval_batch_size)

    def _in_order(self, dataset: MentionDataset | TrainingDataset, batch_size: int) -> DataLoader[Batch]:
        return self._loader(dataset, EvalSampler(dataset, batch_size, *self.world()))

    def _loader(
        self, dataset: Dataset[Batch], sampler: Sampler[Any], collate_fn: Callable[[Any], Batch] = collate
    ) -> DataLoader[Batch]:
        return DataLoader(dataset, sampler=sampler, collate_fn=collate_fn, **loader_kwargs(self.num_workers))
