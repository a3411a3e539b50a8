"""A data folder in the published layout: its files, records and images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.reader import MalformedRecordsError, read_entities, read_mentions
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.images import MAX_PIXELS, ImageFolder, ImagePolicy
from mimic_pl.records import Entity, Mention

_FILES = {"train": "train", "val": "dev", "test": "test"}


class MissingSplitError(DataError):
    """A data set has no file for a split."""


class MIMICFolder(BaseDataModule):
    """File access of :class:`~mimic_pl.data.MELDataModule`, for subclasses to override.

    ``kb_entity.json``, ``{name}_train.json``, ``{name}_dev.json``, ``{name}_test.json``, ``kb_image/``,
    ``mention_images/``, and optionally ``qid2id.json``. To read another layout, override :meth:`read_entities` and
    :meth:`read_mentions`.
    """

    root: str
    name: str | None
    predict_file: str | None

    published: ClassVar[PublishedStatistics | None] = None
    """Statistics published for this data set, if any."""

    file_stems: ClassVar[tuple[str, ...]] = ()
    """Possible prefixes of the split files' names, for a data set whose files are not named after its folder."""

    @classmethod
    def check_root(cls, root: str) -> None:
        """Fail early if the folder does not exist.

        Raises:
            ConfigError: It does not exist.
        """
        if not Path(root).expanduser().is_dir():
            raise ConfigError(
                f"The data folder {root!r} does not exist (resolved to {Path(root).expanduser().resolve()}). "
                "Unpack the data set there, or set its path with --data.root PATH."
            )

    def read_entities(self) -> Sequence[Entity]:
        """Read the knowledge base, in the order of positions.

        The result of an override is stored as an :class:`~mimic_pl.data.table.EntityTable`, which creates new records
        on access: put any additional information about an entity into its ``fields``.
        """
        arrays = self.processor.entity_arrays if self.has_processor else ()
        return read_entities(self.folder / "kb_entity.json", self.folder / "qid2id.json", arrays)

    def read_mentions(self, split: str) -> list[Mention]:
        """Read the mentions of a split: ``train``, ``val``, ``test`` or ``predict``."""
        if split == "predict":
            if self.predict_file is None:
                return self.read_mentions("test")
            file = Path(self.predict_file)
        else:
            file = self.split_file(split)
        return read_mentions(file, self.processor.mention_arrays if self.has_processor else ())

    def split_file(self, split: str) -> Path:
        """The file of a split.

        Raises:
            MissingSplitError: No file with any of its possible names exists.
        """
        stems = (self.name,) if self.name else (*self.file_stems, self.folder.name)
        wanted = [f"{stem}_{_FILES[split]}.json" for stem in stems]
        present = {path.name.lower(): path for path in sorted(self.folder.glob("*.json"))}
        for file in wanted:
            if file.lower() in present:
                return present[file.lower()]
        raise MissingSplitError(
            f"{self.folder} has no file for the {split} split: looked for {' or '.join(wanted)}, but found "
            f"{', '.join(path.name for path in present.values()) or 'no JSON files'}. Set the prefix of its name: "
            "--data.name NAME."
        )

    def image_folder(self, name: str, policy: ImagePolicy = "blank", max_pixels: int = MAX_PIXELS) -> ImageFolder:
        """The folder ``kb_image`` or ``mention_image``, with or without a plural ``s``, as releases differ.

        Raises:
            DataError: Both exist.
        """
        present = [path for path in (self.folder / name, self.folder / f"{name}s") if path.is_dir()]
        if len(present) > 1:
            raise DataError(
                f"{self.folder} has both {name} and {name}s. Move all images into one and remove the other."
            )
        folder = present[0] if present else self.folder / name
        return ImageFolder(folder, policy, max_pixels, self._mention_image_names if name == "mention_image" else None)

    def _mention_image_names(self) -> Iterator[str]:
        """Names of the mentions' images in all splits that can be read."""
        for split in (*_FILES, *(() if self.predict_file is None else ("predict",))):
            try:
                mentions: Sequence[Mention] = self.read_mentions(split)
            except MalformedRecordsError as error:
                mentions = error.records
            except (DataError, OSError):
                continue
            for mention in mentions:
                yield from mention.image_files

    @property
    def folder(self) -> Path:
        """The data folder."""
        return Path(self.root).expanduser()

    @cached_property
    def entity_images(self) -> ImageFolder:
        """Folder of the entities' images, with the processor's policy."""
        return self.image_folder("kb_image", self.processor.image_policy, self.processor.max_pixels)

    @cached_property
    def mention_images(self) -> ImageFolder:
        """Folder of the mentions' images, with the processor's policy."""
        return self.image_folder("mention_image", self.processor.image_policy, self.processor.max_pixels)

    def entity_image(self, entity: Entity) -> Image.Image | None:
        """The entity's first image that opens, for display; needs no processor."""
        return self.image_folder("kb_image").first_readable(entity.image_files)[0]

    def mention_image(self, mention: Mention) -> Image.Image | None:
        """The mention's image, for display; needs no processor."""
        return self._displayed_mention_images.first_readable(mention.image_files)[0]

    @cached_property
    def _displayed_mention_images(self) -> ImageFolder:
        return self.image_folder("mention_image")  # kept, since it may have to read the names of all images
