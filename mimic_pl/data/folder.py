"""A data folder in the published layout: its files, records and images."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import ClassVar

from PIL import Image

from mimic_pl.data.base import BaseDataModule
from mimic_pl.data.malformed_records import MalformedRecordsError
from mimic_pl.data.reader import read_entities, read_mentions
from mimic_pl.data.statistics import PublishedStatistics
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.formats import SUFFIXES
from mimic_pl.home import expanded
from mimic_pl.processor.images import MAX_PIXELS, ImageFolder, ImagePolicy
from mimic_pl.quoting import listed, quoted
from mimic_pl.records import Entity, Mention

_FILES = {"train": "train", "val": "dev", "test": "test"}
_OTHERS = "or .jsonl, .csv, .tsv, .parquet"


class MissingSplitError(DataError):
    """A data set has no file for a split."""


def _require_folder(root: str) -> None:
    if not root or not os.path.isdir(expanded(root)):
        looked = f" (looked in {expanded(root).absolute()})" if root else ""
        raise ConfigError(
            f"The data folder {root!r} does not exist{looked}. Unpack the data set there, set its path with "
            "--data.root PATH, or run the command in the folder from which a relative path is right."
        )


class MIMICFolder(BaseDataModule):
    """File access of :class:`~mimic_pl.data.MELDataModule`, for subclasses to override.

    ``kb_entity.json``, ``{name}_train.json``, ``{name}_dev.json``, ``{name}_test.json``, ``kb_image/``,
    ``mention_images/``, and optionally ``qid2id.json``. Instead of ``.json``, a file may have one of the other
    :mod:`~mimic_pl.formats`. To read another layout, override :meth:`read_entities` and :meth:`read_mentions`; to find
    images elsewhere, override :meth:`image_folder`, which returns an :class:`~mimic_pl.processor.ImageFolder`.
    """

    root: str
    name: str | None
    predict_file: str | None
    entity_image_folder: str | None = "auto"
    mention_image_folder: str | None = "auto"

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
        _require_folder(root)

    def read_entities(self) -> Sequence[Entity]:
        """Read the knowledge base, in the order of positions.

        The result of an override is stored as an :class:`~mimic_pl.data.table.EntityTable`, which creates new records
        on access: put any additional information about an entity into its ``fields``.
        """
        arrays, texts = (self.processor.entity_arrays, self._texts("entity")) if self.has_processor else ((), ())
        path = self._record_file("kb_entity")
        if path is None:
            original = (
                "The original releases of MELBench and WikiDiverse have none: use the cleaned archive, which the "
                "readme of github.com/pengfei-luo/MIMIC links."
            )
            raise DataError(
                f"{self.folder} has no knowledge base: looked for kb_entity.json ({_OTHERS}), but "
                f"found {self._found()}. {original if self.published is not None else ''}".rstrip()
            )
        return read_entities(path, self.folder / "qid2id.json", arrays, texts, self._trusted("entity"))

    def read_mentions(self, split: str) -> list[Mention]:
        """Read the mentions of a split: ``train``, ``val``, ``test`` or ``predict``."""
        if split == "predict":
            if self.predict_file is None:
                return self.split_mentions("test")
            file = expanded(self.predict_file)
        else:
            file = self.split_file(split)
        arrays, texts = (self.processor.mention_arrays, self._texts("mention")) if self.has_processor else ((), ())
        return read_mentions(file, arrays, texts, self._trusted("mention"))

    def split_mentions(self, split: str) -> list[Mention]:
        """All mentions of a split, read on first access only: the file may be a pipe."""
        key = split, self.has_processor  # which decides on fields and arrays
        if key not in self._read:
            self._read[key] = self.read_mentions(split)
        return self._read[key]

    @cached_property
    def _read(self) -> dict[tuple[str, bool], list[Mention]]:
        return {}

    def split_file(self, split: str) -> Path:
        """The file of a split.

        Raises:
            MissingSplitError: No file with any of its possible names exists.
            DataError: Several formats of it exist, and none is ``.json``.
        """
        stems = (self.name,) if self.name else (*self.file_stems, self.folder.name)
        wanted = [f"{stem}_{_FILES[split]}" for stem in stems]
        for stem in wanted:
            if (file := self._record_file(stem)) is not None:
                return file
        raise MissingSplitError(
            f"{self.folder} has no file for the {split} split: looked for "
            f"{' or '.join(f'{stem}.json' for stem in wanted)} ({_OTHERS}), but found {self._found()}. Set the prefix "
            "of its name: --data.name NAME."
        )

    def _record_file(self, stem: str) -> Path | None:
        """The file with records that has this name, in any case: ``.json``, or the only other format."""
        _require_folder(self.root)
        present = {path.name.lower(): path for path in sorted(self.folder.iterdir())}
        files = [present[name] for suffix in SUFFIXES if (name := f"{stem}{suffix}".lower()) in present]
        if len(files) > 1 and files[0].suffix.lower() != ".json":
            raise DataError(f"{self.folder} has {listed(file.name for file in files)}: which one is meant? Keep one.")
        return files[0] if files else None

    def _found(self) -> str:
        names = (path.name for path in sorted(self.folder.iterdir()))
        return listed(name for name in names if name.lower().endswith(SUFFIXES))

    def _texts(self, side: str) -> list[str]:
        """Fields that the text template needs."""
        template = self.processor.entity_template if side == "entity" else self.processor.mention_template
        return template.fields

    def _trusted(self, side: str) -> Path:
        """Folder inside which absolute paths of images are accepted: the configured one, or the data folder.

        Raises:
            ConfigError: It does not exist.
        """
        configured = self.entity_image_folder if side == "entity" else self.mention_image_folder
        if configured in ("auto", None):
            return self.folder.absolute()
        folder = expanded(configured).absolute()
        if not os.path.isdir(folder):
            raise ConfigError(f"The folder of images {folder} does not exist: set --data.{side}_image_folder FOLDER.")
        return folder

    def image_folder(self, name: str, policy: ImagePolicy = "blank", max_pixels: int = MAX_PIXELS) -> ImageFolder:
        """The folder of the entities' images, ``kb_image``, or of the mentions', ``mention_image``.

        It is the one that was configured; otherwise the one of this name in the data folder, with or without a plural
        ``s``, as releases differ.

        Raises:
            ConfigError: The configured folder does not exist.
            DataError: Both exist.
        """
        side = "entity" if name == "kb_image" else "mention"
        configured = self.entity_image_folder if side == "entity" else self.mention_image_folder
        if configured not in ("auto", None):
            folder = self._trusted(side)
        else:
            present = [path for path in (self.folder / name, self.folder / f"{name}s") if path.is_dir()]
            if len(present) > 1:
                raise DataError(
                    f"{self.folder} has both {name} and {name}s. Move all images into one and remove the other."
                )
            folder = present[0] if present else self.folder / name
        return ImageFolder(folder, policy, max_pixels, self._mention_image_names if side == "mention" else None)

    def require_an_image(self, side: str, images: ImageFolder, names: Iterable[Sequence[str]]) -> None:
        """Check that not all images of one side are missing, which is a wrong folder rather than missing images.

        Args:
            side: ``entity`` or ``mention``.
            images: Their folder.
            names: The names of each record's images.

        Raises:
            DataError: There are names, and none of them is a file.
        """
        count, first = 0, ""
        for name in chain.from_iterable(names):
            if os.path.isfile(images.path(name)):
                return
            first = first or name
            count += 1
        if count:
            raise DataError(
                f"All {count:,} {side} images are missing: {quoted(first)} and the others are not in {images.folder}. "
                f"Unpack them there, or name their folder: --data.{side}_image_folder FOLDER. To use none: "
                f"--data.{side}_image_folder null."
            )

    def _mention_image_names(self) -> Iterator[str]:
        """Names of the mentions' images in all splits that can be read."""
        for split in (*_FILES, *(() if self.predict_file is None else ("predict",))):
            try:
                mentions: Sequence[Mention] = self.split_mentions(split)
            except MalformedRecordsError as error:
                mentions = error.records
            except (DataError, OSError):
                continue
            for mention in mentions:
                yield from mention.image_files

    @property
    def folder(self) -> Path:
        """The data folder."""
        return expanded(self.root)

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
