"""A data folder in the published layout: which file is what, read into records; images by name."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.reader import read_entities, read_mentions
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.processor.images import MAX_PIXELS, ImageFolder, ImagePolicy
from mimic_pl.records import Entity, Mention

_FILES = {"train": "train", "val": "dev", "test": "test"}


class MissingSplitError(DataError):
    """A data set has no file of a split."""


class MIMICFolder(BaseDataModule):
    """The files of :class:`~mimic_pl.data.MELDataModule`, for subclasses to override.

    ``kb_entity.json``, ``{name}_train.json``, ``{name}_dev.json``, ``{name}_test.json``, ``kb_image/``,
    ``mention_images/``, and maybe ``qid2id.json``. To read another layout, override :meth:`read_entities` and
    :meth:`read_mentions`.
    """

    root: str
    name: str | None
    predict_file: str | None

    published: ClassVar[PublishedStatistics | None] = None
    """What the paper says of this data set, if it does."""

    file_stems: ClassVar[tuple[str, ...]] = ()
    """What the split files' names may begin with, for a data set whose files are not named after it."""

    @classmethod
    def check_root(cls, root: str) -> None:
        """Fail before anything loads if the folder is not there.

        Raises:
            ConfigError: It is not.
        """
        if not Path(root).expanduser().is_dir():
            raise ConfigError(
                f"The data folder {root!r} does not exist (looked in {Path(root).expanduser().resolve()}). "
                "Unpack the data set there, or say where it is with --data.root PATH."
            )

    def read_entities(self) -> Sequence[Entity]:
        """Read the knowledge base, in the order that positions count.

        What an override returns is stored as an :class:`~mimic_pl.data.table.EntityTable`, of which ``entities`` makes
        new records when asked: whatever else is to be known of an entity goes into its ``fields``.
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
            MissingSplitError: None of the names it may have is there.
        """
        stems = (self.name,) if self.name else (*self.file_stems, self.folder.name)
        wanted = [f"{stem}_{_FILES[split]}.json" for stem in stems]
        present = {path.name.lower(): path for path in sorted(self.folder.glob("*.json"))}
        for file in wanted:
            if file.lower() in present:
                return present[file.lower()]
        raise MissingSplitError(
            f"{self.folder} has no file of the {split} split: looked for {' or '.join(wanted)}, and there are "
            f"{', '.join(path.name for path in present.values()) or 'no JSON files'}. Say what its name begins with: "
            "--data.name NAME."
        )

    def image_folder(self, name: str, policy: ImagePolicy = "blank", max_pixels: int = MAX_PIXELS) -> ImageFolder:
        """The folder ``kb_image`` or ``mention_image``, with or without a plural ``s``: releases differ.

        Raises:
            DataError: Both are there.
        """
        present = [path for path in (self.folder / name, self.folder / f"{name}s") if path.is_dir()]
        if len(present) > 1:
            raise DataError(f"{self.folder} has {name} and {name}s. Move all images into one and remove the other.")
        folder = present[0] if present else self.folder / name
        return ImageFolder(folder, policy, max_pixels, renamed=name == "mention_image")

    @property
    def folder(self) -> Path:
        """The data folder."""
        return Path(self.root).expanduser()

    @cached_property
    def entity_images(self) -> ImageFolder:
        """Where the entities' images are, under the processor's policy."""
        return self.image_folder("kb_image", self.processor.image_policy, self.processor.max_pixels)

    @cached_property
    def mention_images(self) -> ImageFolder:
        """Where the mentions' images are, under the processor's policy."""
        return self.image_folder("mention_image", self.processor.image_policy, self.processor.max_pixels)

    def entity_image(self, entity: Entity) -> Image.Image | None:
        """The entity's first image that opens, to be shown to a person: it needs no processor."""
        return self.image_folder("kb_image").first_readable(entity.image_files)[0]

    def mention_image(self, mention: Mention) -> Image.Image | None:
        """The mention's image, to be shown to a person: it needs no processor."""
        return self.image_folder("mention_image").first_readable(mention.image_files)[0]
