"""The processor: turns mentions and entities into model inputs."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from typing_extensions import Self

from mimic_pl.batch import Batch, ImageFailure, Inputs
from mimic_pl.construction import Recorded
from mimic_pl.distributed import ProcessGroup
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.decoding import decode
from mimic_pl.processor.image_processor import ImageProcessor
from mimic_pl.processor.images import (
    MAX_PIXELS,
    ImageError,
    ImageFolder,
    ImagePolicy,
    ImageReport,
    Loaded,
)
from mimic_pl.processor.record_features import RecordFeatures, Statistics
from mimic_pl.processor.template import TextTemplate
from mimic_pl.processor.tokenizer import TextTokenizer
from mimic_pl.ranges import COUNT, in_range, one_of
from mimic_pl.records import Entity, ImageSource, Mention

Modalities = Literal["both", "text", "images"]
"""Modalities passed to the model: text and image, or only one of them (with ``images``, every text is empty)."""


class Processor(Recorded):
    """Turns mentions and entities into model inputs; the model owns it and is saved with it.

    The user configures the settings below; tokenizer, image size and normalisation come from the encoder, through
    :meth:`connect`. Data modules use the model's processor, so that all preprocessing is defined in one place.

    Args:
        mention_template: Text of a mention, from ``{mention}``, ``{sentence}`` and any other field of its record.
        entity_template: Text of an entity, from ``{name}``, ``{attr}`` and any other field of its record.
        image_policy: Policy for missing, unreadable and oversized images: ``blank``, ``drop`` or ``error`` (see
            :data:`~mimic_pl.processor.ImagePolicy`).
        max_pixels: Larger images count as oversized.
        reduced_decoding: Decode large JPEGs at a reduced scale, at least twice the model's input size. This is faster,
            but the pixels differ slightly from the published preprocessing.
        modalities: Modalities passed to the model: ``both``, ``text`` only, or ``images`` only (then every text is
            empty).
        features: Additional named tensors of records, for units that use more than text and image:
            :class:`~mimic_pl.processor.BM25Lexicon`, :class:`~mimic_pl.processor.RecordArrays` or a custom class.

    Attributes:
        mention_images: Folder for file names of mentions' images that do not exist in the working directory;
            :func:`~mimic_pl.load_run` sets it to the folder of the run's data.
        entity_images: The same for entities.

    Raises:
        ConfigError: A template names no field, or an argument has none of its possible values.

    Example:
        >>> processor = Processor(entity_template="{name}: {desc}")
        >>> processor.entity_text(Entity("Q1", "Ada", {"desc": "a mathematician"}))
        'Ada: a mathematician'
    """

    @in_range(image_policy=one_of(ImagePolicy), max_pixels=COUNT, modalities=one_of(Modalities))
    def __init__(
        self,
        mention_template: str = "{mention} [SEP] {sentence}",
        entity_template: str = "{name} [SEP] {attr}",
        image_policy: ImagePolicy = "blank",
        max_pixels: int = MAX_PIXELS,
        reduced_decoding: bool = False,
        modalities: Modalities = "both",
        features: dict[str, RecordFeatures] | None = None,
    ) -> None:
        self.mention_template = TextTemplate(mention_template)
        self.entity_template = TextTemplate(entity_template)
        self.image_policy: ImagePolicy = image_policy
        self.max_pixels = max_pixels
        self.reduced_decoding = reduced_decoding
        self.modalities: Modalities = modalities
        self.features = dict(features or {})
        self.report = ImageReport()
        self.mention_images: ImageFolder | None = None
        self.entity_images: ImageFolder | None = None
        self._build: tuple[Callable[[], TextTokenizer], Callable[[], ImageProcessor]] | None = None
        self._image_key: Callable[[Tensor, Tensor], Tensor] | None = None
        self._tokenizer: TextTokenizer | None = None
        self._image_processor: ImageProcessor | None = None

    def connect(
        self,
        tokenizer: Callable[[], TextTokenizer],
        image_processor: Callable[[], ImageProcessor],
        image_key: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> Self:
        """Connect the processor to an encoder.

        Args:
            tokenizer: Factory of the encoder's tokenizer, called on first use.
            image_processor: Factory of its image processor, called on first use.
            image_key: Function from ``pixels`` and ``has_image`` to hashes of the images (``image_key`` of the inputs),
                if the encoder uses them.

        Returns:
            A connected copy.
        """
        connected = copy.copy(self)
        connected._build = tokenizer, image_processor
        connected._image_key = image_key
        connected._tokenizer = connected._image_processor = None
        return connected

    def fit(self, entities: Iterable[Entity]) -> Self:
        """Fit the features to a knowledge base; see :meth:`RecordFeatures.fit`.

        Returns:
            A fitted copy, which shares the report of failed images.
        """
        # One pass for each feature, but an iterator can be consumed only once.
        entities = list(entities) if len(self.features) > 1 and isinstance(entities, Iterator) else entities
        return self._with_features(
            {name: features.fit(self._entity_texts(features, entities)) for name, features in self.features.items()}
        )

    def statistics(self) -> Statistics:
        """What the features have learned from the knowledge base, as named arrays: ``lexical.terms``, ...

        See :meth:`RecordFeatures.statistics`.
        """
        return {
            f"{name}.{own}": array
            for name, features in self.features.items()
            for own, array in features.statistics().items()
        }

    def with_statistics(self, statistics: Statistics) -> Self:
        """This processor, fitted to the knowledge base whose :meth:`statistics` these are.

        Returns:
            A fitted copy, which shares the report of failed images.

        Raises:
            DataError: They are incomplete or damaged, or of other features.
        """
        own: dict[str, dict[str, Any]] = {name: {} for name in self.features}
        for name, array in statistics.items():
            feature, _, rest = name.partition(".")
            if feature not in own:
                raise DataError(
                    f"The knowledge base has statistics of the features {feature!r}, which the processor lacks (it has "
                    f"{sorted(own) or 'none'}). Use the model that it was indexed with, or index it again."
                )
            own[feature][rest] = array
        return self._with_features(
            {name: features.with_statistics(own[name]) for name, features in self.features.items()}
        )

    def updated(self, added: Iterable[Entity] = (), removed: Iterable[Entity] = ()) -> Self:
        """Follow a change of the knowledge base, without changing the inputs of the entities that stay.

        Args:
            added: Entities that were added, including the new state of changed ones.
            removed: Entities that were removed, including the former state of changed ones.

        Returns:
            A fitted copy, which shares the report of failed images; see :meth:`RecordFeatures.updated`.
        """
        added, removed = list(added), list(removed)
        return self._with_features(
            {
                name: features.updated(self._entity_texts(features, added), self._entity_texts(features, removed))
                for name, features in self.features.items()
            }
        )

    def recounted(self, entities: Iterable[Entity]) -> Self:
        """What :meth:`updated` would have led to, given all entities that remain.

        Args:
            entities: The entities, read once for each feature that counts.

        Returns:
            A fitted copy, which shares the report of failed images; see :meth:`RecordFeatures.recounted`.
        """
        return self._with_features(
            {name: own.recounted(self._entity_texts(own, entities)) for name, own in self.features.items()}
        )

    @property
    def drifted(self) -> dict[str, float]:
        """Features whose knowledge base has drifted so far that indexing it again is advised, and their drift.

        See :attr:`RecordFeatures.drift` and :attr:`RecordFeatures.max_drift`.
        """
        return {name: own.drift for name, own in self.features.items() if own.drift > own.max_drift}

    def _with_features(self, features: dict[str, RecordFeatures]) -> Self:
        copied = copy.copy(self)
        copied.features = features
        return copied

    @property
    def tokenizer(self) -> TextTokenizer:
        """The encoder's tokenizer."""
        if self._tokenizer is None:
            self._tokenizer = self._builders[0]()
        return self._tokenizer

    @property
    def image_processor(self) -> ImageProcessor:
        """The encoder's image size and normalisation."""
        if self._image_processor is None:
            self._image_processor = self._builders[1]()
        return self._image_processor

    @property
    def _builders(self) -> tuple[Callable[[], TextTokenizer], Callable[[], ImageProcessor]]:
        if self._build is None:
            raise ConfigError(
                "The processor has no tokenizer and no image size yet: they come from the encoder. Use the processor "
                "of a model (model.processor)."
            )
        return self._build

    def __getstate__(self) -> dict[str, Any]:
        """Pickle tokenizer and image processor for loader processes, instead of the encoder they come from."""
        state = dict(self.__dict__)
        if self._build is not None:
            state |= {"_tokenizer": self.tokenizer, "_image_processor": self.image_processor, "_build": None}
        return state

    @property
    def entity_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that the features need of entities."""
        return tuple({name: None for features in self.features.values() for name in features.entity_arrays})

    @property
    def mention_arrays(self) -> tuple[str, ...]:
        """Names of the arrays that the features need of mentions."""
        return tuple({name: None for features in self.features.values() for name in features.mention_arrays})

    # ---- texts --------------------------------------------------------------------------------------------------

    def mention_text(self, mention: Mention) -> str:
        """Text of a mention as passed to the model."""
        return "" if self.modalities == "images" else self.mention_template(mention)

    def entity_text(self, entity: Entity) -> str:
        """Text of an entity as passed to the model."""
        return "" if self.modalities == "images" else self.entity_template(entity)

    def mention_features(self, mentions: Sequence[Mention]) -> Inputs:
        """The named tensors of mentions, ``[mentions, ...]``: ``lexical.ids``, ..."""
        return {
            f"{name}.{own}": tensor
            for name, features in self.features.items()
            for own, tensor in features.mentions(mentions, list(self._mention_texts(features, mentions))).items()
        }

    def entity_features(self, entities: Sequence[Entity]) -> Inputs:
        """The named tensors of entities, ``[entities, ...]``: ``lexical.ids``, ..."""
        return {
            f"{name}.{own}": tensor
            for name, features in self.features.items()
            for own, tensor in features.entities(entities, list(self._entity_texts(features, entities))).items()
        }

    def _mention_texts(self, features: RecordFeatures, mentions: Iterable[Mention]) -> Iterator[str]:
        """Texts of mentions as the features read them."""
        template = features.mention_template or self.mention_template
        return ("" if self.modalities == "images" else template(mention) for mention in mentions)

    def _entity_texts(self, features: RecordFeatures, entities: Iterable[Entity]) -> Iterator[str]:
        """Texts of entities as the features read them."""
        template = features.entity_template or self.entity_template
        return ("" if self.modalities == "images" else template(entity) for entity in entities)

    # ---- records with images ------------------------------------------------------------------------------------

    def mentions(self, records: Iterable[Mention | Mapping[str, Any]]) -> Inputs:
        """Inputs of mentions, given as records or dictionaries (see :meth:`Mention.of`)."""
        mentions = [Mention.of(record) for record in records]
        images = [() if mention.image is None else (mention.image,) for mention in mentions]
        texts = [self.mention_text(mention) for mention in mentions]
        return self._inputs(texts, images, self.mention_features(mentions), self.mention_images)

    def entities(self, records: Iterable[Entity | Mapping[str, Any]]) -> Inputs:
        """Inputs of entities, given as records or dictionaries (see :meth:`Entity.of`)."""
        entities = [Entity.of(record) for record in records]
        images = [entity.images for entity in entities]
        texts = [self.entity_text(entity) for entity in entities]
        return self._inputs(texts, images, self.entity_features(entities), self.entity_images)

    def _inputs(
        self, texts: list[str], images: Sequence[Sequence[ImageSource]], features: Inputs, folder: ImageFolder | None
    ) -> Inputs:
        ids, mask = self.tokenizer(texts)
        pixels, has_image = self._pixels(images, folder)
        tokens = {"input_ids": ids, "attention_mask": mask}
        return {**tokens, **self.image_inputs(pixels, has_image), **features}

    def image_inputs(self, pixels: Tensor, has_image: Tensor) -> Inputs:
        """Inputs for pixels, uint8 ``[batch, 3, S, S]``, and whether there is an image, bool ``[batch]``."""
        inputs = {"pixels": pixels, "has_image": has_image}
        return inputs if self._image_key is None else {**inputs, "image_key": self._image_key(pixels, has_image)}

    def _pixels(self, images: Sequence[Sequence[ImageSource]], folder: ImageFolder | None) -> tuple[Tensor, Tensor]:
        """For each record, the pixels of its first image that opens."""
        size = self.image_processor.image_size
        pixels = torch.zeros(len(images), 3, size, size, dtype=torch.uint8)
        has_image = torch.zeros(len(images), dtype=torch.bool)
        rows: dict[tuple[object, ...], list[int]] = {}  # several mentions of a sentence have the same image
        for row, own in enumerate(() if self.modalities == "text" else images):
            if own:
                rows.setdefault(tuple(i if isinstance(i, str) else id(i) for i in own), []).append(row)
        # Pillow decodes without the interpreter's lock, but two threads must not decode one of its images.
        in_memory = any(isinstance(image, Image.Image) for own in images for image in own)
        threads = 1 if in_memory or len(rows) < 2 else min(len(rows), os.cpu_count() or 1)
        with ThreadPoolExecutor(threads) as pool:
            load = partial(self.first_opened, folder=folder, load=self._decoded)
            opened = (map if threads == 1 else pool.map)(load, [images[same[0]] for same in rows.values()])
            for same, (found, failures) in zip(rows.values(), opened, strict=True):
                self.report.add(failures)
                if found is not None:
                    pixels[same], has_image[same] = found, True
        return pixels, has_image

    def _decoded(self, image: ImageSource) -> Tensor:
        return decode(image, self.image_processor, self.max_pixels, self.reduced_decoding)

    def first_opened(
        self, images: Sequence[Any], folder: ImageFolder | None, load: Callable[[Any], Loaded]
    ) -> tuple[Loaded | None, list[ImageFailure]]:
        """The first of a record's images that opens, if any, and the failures before it.

        Args:
            images: The images; see :data:`~mimic_pl.records.ImageSource`.
            folder: :attr:`mention_images` or :attr:`entity_images`.
            load: Opens an image, or raises an ImageError.

        Raises:
            DataError: An image fails, and the image policy is ``error``.
        """
        failures: list[ImageFailure] = []
        for image in images:
            try:
                # os.path.isfile: unlike Path.is_file, it returns False for a name that is too long.
                if folder is not None and isinstance(image, str) and not os.path.isfile(image):
                    return folder.load(image, load), failures
                return load(image), failures
            except ImageError as error:
                if self.image_policy == "error":
                    raise error.as_data_error() from error
                failures.append((str(error.path), error.kind))
        return None, failures

    # ---- on the device ------------------------------------------------------------------------------------------

    def normalize(self, inputs: Inputs) -> Inputs:
        """Replace ``pixels`` by normalised ``pixel_values``, float32 ``[batch, 3, S, S]``, on their device."""
        if "pixels" not in inputs:
            return inputs  # normalised already
        rest = {name: tensor for name, tensor in inputs.items() if name != "pixels"}
        return {**rest, "pixel_values": self.image_processor.normalize(inputs["pixels"], inputs["has_image"])}

    def finish(self, batch: Batch) -> Batch:
        """Normalise a batch's images on its device, and count failed ones."""
        self.report.add(batch.get("failures", ()))
        finished = copy.copy(batch)
        finished.pop("failures", None)
        if "mentions" in finished:
            finished["mentions"] = self.normalize(finished["mentions"])
        if "entities" in finished:
            finished["entities"] = self.normalize(finished["entities"])
        return finished

    def log_failures(self, alone: bool = False) -> None:
        """Log which images could not be used, on all processes or on this one ``alone``."""
        self.report.log(self.image_policy, ProcessGroup(alone))

    def describe(self) -> dict[str, str]:
        """Settings that determine the inputs of entities, to check whether an index was built with them."""
        connected = self._build is not None or self._image_processor is not None
        own_resize = connected and self.image_processor.resize is not None
        return {
            "text template": self.entity_template.template,
            "modalities": self.modalities,
            "image policy": self.image_policy,
            "reduced decoding": str(self.reduced_decoding),
            "image resizing": "as the model was trained" if own_resize else "square",
            "features": "; ".join(f"{name}: {own.describe()}" for name, own in self.features.items()) or "none",
        }
