"""The LightningDataModule: a folder in the published layout -> loaders of batches."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from mimic_pl.data.dataset import (
    EntityDataset,
    Item,
    MentionDataset,
    SideTransform,
    TrainingDataset,
    collate,
    collate_cut,
)
from mimic_pl.data.degradation import Degradation, DegradedPixels, ImageDegradation
from mimic_pl.data.filtering import without_failing
from mimic_pl.data.folder import MissingSplitError, PublishedFolder
from mimic_pl.data.image_cache import Chain, ImageCache, default_folder
from mimic_pl.data.images import MAX_PIXELS, ImageFolder, ImagePolicy, ImageReport
from mimic_pl.data.lexicon import BM25Lexicon
from mimic_pl.data.loader import TrainLoader, keep_through_signals
from mimic_pl.data.pixels import PixelSource
from mimic_pl.data.preprocessor import Preprocessor
from mimic_pl.data.sampler import EntitySampler, EvalSampler, SetSampler, TrainSampler, resume_point
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.data.template import TextTemplate
from mimic_pl.data.training_split import golds_of, require_share, seeded_share
from mimic_pl.data.transforms import Augment, DropModality
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.records import Entity, Mention

_log = logging.getLogger(__name__)

_STAGES = {
    "fit": ("train", "val"),
    "train": ("train",),  # no stage of the Trainer: of a set that is trained on and validated elsewhere
    "validate": ("val",),
    "test": ("test",),
    "predict": ("predict",),
}


class MELDataModule(PublishedFolder, LightningDataModule):
    """Any data set in the published layout: a knowledge base, three splits of mentions, two folders of images.

    A folder holds ``kb_entity.json``, ``{name}_train.json``, ``{name}_dev.json``, ``{name}_test.json``, ``kb_image/``,
    ``mention_images/``, and maybe ``qid2id.json``. To read another layout, override :meth:`read_entities` and
    :meth:`read_mentions`.

    Args:
        root: The folder.
        name: What the split files' names begin with; the folder's name by default.
        mention_template: Text of a mention from its fields ``{mention}``, ``{sentence}`` and any other of its record.
        entity_template: Text of an entity from its fields ``{name}``, ``{attr}`` and any other of its record.
        images: What happens where an image is missing, unreadable or oversized: ``blank``, ``drop`` or ``error``
            (see :data:`~mimic_pl.data.images.ImagePolicy`).
        max_pixels: Larger images count as oversized.
        batch_size: Mentions in a training batch.
        eval_batch_size: Mentions that are ranked at once; each batch goes through the whole knowledge base.
        entity_batch_size: Entities that are encoded at once.
        num_workers: Loader processes.
        seed: Decides the order of training and the images drawn.
        predict_file: File of mentions to link; the test split by default.
        image_cache: Folder where decoded images are kept, at the model's size and as bytes (150 kB each at 224 x
            224), so that later epochs, runs and processes need not decode them again; all data sets may share it. By
            default ``auto``: ``~/.cache/mimic_pl/images`` (below ``XDG_CACHE_HOME`` if that is set), unless it would
            take more than half of what is free there. How much will be written is told before; ``None`` turns it off.
            Delete the folder when no run uses it.
        reduced_decoding: Decode large JPEGs at a reduced scale, no smaller than twice the model's square. That is
            faster, but the pixels are not quite those of the published preprocessing.
        lexicon: Makes sparse vectors of the texts for units that compare them
            (:class:`~mimic_pl.data.lexicon.BM25Lexicon`); none by default.
        augmentation: Renders the images of training batches anew each time, those of mentions and of entities: a
            module that turns uint8 ``[3, S, S]`` into the same, such as a composition of
            :mod:`torchvision.transforms.v2`; none by default.
        modalities: What the model gets of mentions and entities: ``both``, their ``text`` only, or their ``images``
            only (then every text is empty).
        modality_dropout: Share of training mentions that lose, each time anew, their image or their text.
        degradation: Makes the mentions of validation, test and prediction worse (see
            :class:`~mimic_pl.data.degradation.Degradation`); training and the knowledge base stay as they are.
        train_share: Share of the training mentions that are trained on: 0.1 for a tenth, drawn by ``seed``; a larger
            share holds a smaller one's mentions.
    """

    entities: EntityTable
    mentions: dict[str, list[Mention]]

    def __init__(
        self,
        root: str,
        name: str | None = None,
        mention_template: str = "{mention} [SEP] {sentence}",
        entity_template: str = "{name} [SEP] {attr}",
        images: ImagePolicy = "blank",
        max_pixels: int = MAX_PIXELS,
        batch_size: int = 128,
        eval_batch_size: int = 256,
        entity_batch_size: int = 256,
        num_workers: int = 2,
        seed: int = 43,
        predict_file: str | None = None,
        image_cache: str | None = "auto",
        reduced_decoding: bool = False,
        lexicon: BM25Lexicon | None = None,
        augmentation: nn.Module | None = None,
        modalities: Literal["both", "text", "images"] = "both",
        modality_dropout: float = 0.0,
        degradation: Degradation | None = None,
        train_share: float = 1.0,
    ) -> None:
        super().__init__()
        require_share(train_share)
        self.root = root
        self.name = name
        self.mention_template = TextTemplate(mention_template)
        self.entity_template = TextTemplate(entity_template)
        self.images: ImagePolicy = images
        self.max_pixels = max_pixels
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.entity_batch_size = entity_batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.predict_file = predict_file
        self.image_cache = image_cache
        self.reduced_decoding = reduced_decoding
        self.lexicon = lexicon
        self.augmentation = augmentation
        self.modalities = modalities
        self.modality_dropout = modality_dropout
        self.degradation = degradation
        self.train_share = train_share
        self.image_report = ImageReport()
        self.mentions = {}
        self.hard_negatives: Tensor | None = None
        self._preprocessor: Preprocessor | None = None
        self._datasets: dict[str, MentionDataset] = {}

    @property
    def parts(self) -> tuple[MELDataModule, ...]:
        """The data sets that this is made of."""
        return (self,)

    @property
    def title(self) -> str:
        """What results call the data set."""
        return type(self).__name__

    # ---- Lightning's hooks --------------------------------------------------------------------------------------

    @property
    def preprocessor(self) -> Preprocessor:
        """The model's tokenizer and image preprocessing; set it to use the data without a Trainer.

        Raises:
            ConfigError: There is neither.
        """
        if self._preprocessor is None:
            module: Any = self.trainer.lightning_module if self.trainer is not None else None
            if module is None:
                raise ConfigError(
                    "The data module has no preprocessor yet: it comes from the model that the Trainer runs. Without a "
                    "Trainer set it: datamodule.preprocessor = model.encoder.preprocessor"
                )
            self._preprocessor = module.encoder.preprocessor
        return self._preprocessor

    @preprocessor.setter
    def preprocessor(self, preprocessor: Preprocessor) -> None:
        self._preprocessor = preprocessor

    def setup(self, stage: str) -> None:
        """Read and tokenize what the stage needs."""
        self.check_root(self.root)
        if not hasattr(self, "entities"):
            self.entities = as_table(self.read_entities())
            self.entity_images.warn_if_absent(entity.images for entity in self.entities)
            self._entity_dataset = EntityDataset(
                self.entities,
                self._text,
                self._pixels(self.entity_images),
                self.preprocessor,
                None if self.lexicon is None else self.lexicon.fit(map(self._text, self.entities)),
            )
        for split in _STAGES[stage]:
            if split not in self._datasets:
                self._add_split(split)
        if self._cache is not None and self.modalities != "text":
            self._cache.fill(partial(self._images_of, _STAGES[stage]))

    @cached_property
    def _cache(self) -> ImageCache | None:
        if self.image_cache is None:
            return None
        by_default = self.image_cache == "auto"
        folder = default_folder() if by_default else Path(self.image_cache)
        return ImageCache(folder, self.preprocessor, self.reduced_decoding, share=0.5 if by_default else 1.0)

    def _pixels(self, images: ImageFolder) -> PixelSource:
        return PixelSource(
            images, self.preprocessor, self.reduced_decoding, self._cache, blank=self.modalities == "text"
        )

    def _text(self, record: Entity | Mention) -> str:
        """What the model reads of a record."""
        if self.modalities == "images":
            return ""
        return self.entity_template(record) if isinstance(record, Entity) else self.mention_template(record)

    def _images_of(self, splits: Iterable[str]) -> Iterator[Chain]:
        """Images that these splits need: of every mention, of a ranked entity the first, of a training gold any."""
        for split in splits:
            for mention in self.mentions[split]:
                if mention.image:
                    yield self.mention_images, (mention.image,)
        if set(splits) != {"train"}:
            for entity in self.entities:
                yield self.entity_images, entity.images
        if "train" in splits:
            for gold in {gold for golds in self._datasets["train"].golds for gold in golds}:
                for image in self.entities[gold].images:
                    yield self.entity_images, (image,)

    def _read_split(self, split: str) -> list[Mention]:
        mentions = self.read_mentions(split)
        return seeded_share(mentions, self.train_share, self.seed) if split == "train" else mentions

    @cached_property
    def seen_golds(self) -> frozenset[str] | None:
        """``qid`` of every gold that is trained on, ``None`` without a training file; to be set if trained elsewhere.

        ``test`` reports mentions of these golds and of others separately.
        """
        try:
            return golds_of(self.mentions.get("train") or self._read_split("train"))
        except MissingSplitError:
            return None

    def _add_split(self, split: str) -> None:
        mentions = self._read_split(split)
        if not mentions:
            raise DataError(f"The {split} split of {self.folder} holds no mentions.")
        self.mentions[split] = mentions
        if not self._datasets:  # once for all splits: they share the folder
            self.mention_images.warn_if_absent(mention.image for mention in mentions)
        known = self.entities.positions
        nil = sum(not mention.golds for mention in mentions)
        unknown = sum(bool(m.golds) and not any(gold in known for gold in m.golds) for m in mentions)
        if (nil or unknown) and split != "predict":
            fate = "left out of training" if split == "train" else "counted as not found"
            _log.warning(
                f"{split}: of {len(mentions)} mentions {nil} have no gold (nil) and {unknown} a gold that is not in "
                f"the knowledge base; they are {fate}."
            )
        self._datasets[split] = self._mention_dataset(split, mentions, self._pixels(self.mention_images))

    def _mention_dataset(self, split: str, mentions: list[Mention], pixels: PixelSource) -> MentionDataset:
        return MentionDataset(
            mentions,
            self.entities.positions,
            self._text,
            pixels,
            self.preprocessor,
            f"{split} mentions",
            None if self.lexicon is None else self.lexicon.mentions(map(self._text, mentions)),
            self.seen_golds if split == "test" else None,
        )

    def _degraded(self, split: str, degradation: Degradation) -> MentionDataset:
        pixels = self._pixels(self.mention_images)
        if isinstance(degradation, ImageDegradation) and not pixels.blank:
            pixels = DegradedPixels(self.mention_images, self.preprocessor, degradation, self.reduced_decoding)
        return self._mention_dataset(split, degradation.mentions(self.mentions[split]), pixels)

    def training_dataset(self) -> TrainingDataset:
        """Pairs of a mention and its gold entity.

        Raises:
            DataError: There are none.
        """
        mentions = self._datasets["train"]
        kept = [index for index, golds in enumerate(mentions.golds) if golds]
        if not kept:
            raise DataError(f"No training mention of {self.folder} has a gold in the knowledge base.")
        if self.images == "drop":
            kept = self._with_images(mentions, kept)
        return TrainingDataset(
            mentions, self._entity_dataset, kept, self.seed, self._training_changes(), self.hard_negatives
        )

    def training_sample(self) -> dict[str, Any]:
        """A training batch of at most two pairs."""
        dataset = self.training_dataset()
        return self.on_after_batch_transfer(dataset.__getitems__(list(range(min(2, len(dataset))))), 0)

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled pairs of a mention and its gold entity; in order where the Trainer is to overfit some batches."""
        dataset = self.training_dataset()
        if self.trainer is not None and self.trainer.overfit_batches:  # type: ignore[attr-defined]
            return self._in_order(dataset, self.batch_size)
        sampler = TrainSampler(dataset, self.batch_size, *self._processes(), seed=self.seed)
        sampler.begin(*resume_point(self.trainer))
        return self._training_loader(dataset, sampler)

    def mining_dataloader(self) -> DataLoader[Any]:
        """The training mentions in order, undisturbed: to rank the knowledge base for them."""
        return self._in_order(self._datasets["train"], self.eval_batch_size)

    def _training_changes(self) -> dict[str, list[SideTransform]]:
        changes: dict[str, list[SideTransform]] = {"mentions": [], "entities": []}
        if self.augmentation is not None:
            for side in changes.values():
                side.append(Augment(self.augmentation))
        if self.modality_dropout:
            changes["mentions"].append(DropModality(self.modality_dropout, self.preprocessor))
        return changes

    def _with_images(self, mentions: MentionDataset, kept: list[int]) -> list[int]:
        left, failed = without_failing(
            ((i, mentions.mentions[i].image, [self.entities[gold].images for gold in mentions.golds[i]]) for i in kept),
            self.mention_images,
            self.entity_images,
        )
        self.image_report.add(failed)
        if not left:
            raise DataError(
                f"Every training mention of {self.folder} is dropped for its images. `mimic-pl doctor` lists what is "
                "wrong with them; --data.images blank trains without."
            )
        if len(left) < len(kept):
            _log.warning(f"{len(kept) - len(left)} of {len(kept)} training mentions are dropped for their images.")
        return left

    def val_dataloader(self) -> DataLoader[Any]:
        """Mentions of the validation split."""
        return self._eval_loader("val")

    def test_dataloader(self) -> DataLoader[Any]:
        """Mentions of the test split."""
        return self._eval_loader("test")

    def predict_dataloader(self) -> DataLoader[Any]:
        """Mentions to link."""
        return self._eval_loader("predict")

    def describe_entities(self) -> dict[str, str]:
        """What the model sees of the knowledge base, to tell whether an index was made from the same."""
        tokens = self._entity_dataset.side.tokens
        digest = hashlib.sha256(tokens.ids.tobytes() + tokens.lengths.tobytes())
        for entity in self.entities:
            digest.update("\0".join((entity.id, *entity.images, "")).encode())
        return {
            "text template": self.entity_template.template,
            "modalities": self.modalities,
            "image policy": self.images,
            "reduced decoding": str(self.reduced_decoding),
            "knowledge base": digest.hexdigest(),
            "lexicon": "none" if self.lexicon is None else self.lexicon.describe(),
        }

    def entity_dataloader(self, by_length: bool = False, first: int = 0) -> DataLoader[Any]:
        """This process's entities of the knowledge base; its sampler's ``positions`` say which those are.

        Args:
            first: In order, begin with the batch that holds this one of them.
            by_length: The longest texts first instead of in order, and each batch's ``input_ids`` and
                ``attention_mask`` no longer than its longest text; ``index`` (int64 ``[batch]``) says which entities
                they are. Only where padding is masked are the features of a shorter batch the same.
        """
        dataset = self._entity_dataset
        sampler = EntitySampler(
            len(dataset),
            self.entity_batch_size,
            *self._processes(),
            lengths=dataset.side.tokens.lengths if by_length else None,
            first=first,
        )
        return self._loader(dataset, sampler, collate_with=collate_cut if by_length else collate)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        """Normalise the images on the device, and count those that failed."""
        self.image_report.add(batch.pop("failures", ()))
        for name in ("mentions", "entities"):
            if name in batch:
                side = batch[name]
                batch[name] = {
                    "input_ids": side["input_ids"],
                    "attention_mask": side["attention_mask"],
                    "pixel_values": self.preprocessor.normalize(side["pixels"], side["has_image"]),
                    **{name: side[name] for name in ("term_ids", "term_weights") if name in side},
                }
        return batch

    def teardown(self, stage: str) -> None:
        """Report once what was wrong with the images."""
        self.image_report.log(self.images)

    # ---- loaders ------------------------------------------------------------------------------------------------

    def _eval_loader(self, split: str) -> DataLoader[Any]:
        dataset = self._datasets[split] if self.degradation is None else self._degraded(split, self.degradation)
        return self._in_order(dataset, self.eval_batch_size)

    def _in_order(self, dataset: MentionDataset | TrainingDataset, batch_size: int) -> DataLoader[Any]:
        return self._loader(dataset, EvalSampler(dataset, batch_size, *self._processes()))

    def _training_loader(self, dataset: Dataset[Any], sampler: TrainSampler | SetSampler) -> TrainLoader:
        return TrainLoader(
            dataset, sampler=sampler, collate_fn=collate, persistent_workers=self.num_workers > 0, **self._loading()
        )

    def _loader(
        self,
        dataset: Dataset[Any],
        sampler: Sampler[Any],
        collate_with: Callable[[list[Item]], dict[str, Any]] = collate,
    ) -> DataLoader[Any]:
        return DataLoader(dataset, sampler=sampler, collate_fn=collate_with, **self._loading())

    def _loading(self) -> dict[str, Any]:
        return {
            "batch_size": None,  # the samplers make the batches
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "worker_init_fn": keep_through_signals,
        }

    def _processes(self) -> tuple[int, int]:
        """Number of processes, and which one this is."""
        if self.trainer is None:
            return 1, 0
        return self.trainer.world_size, self.trainer.global_rank
