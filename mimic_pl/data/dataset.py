"""Records -> items -> batches: tokens made once, pictures opened when asked for."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from mimic_pl.data.pictures import Failure, PictureFolder
from mimic_pl.data.preprocessor import Preprocessor
from mimic_pl.data.records import Entity, Mention
from mimic_pl.data.sampler import draw
from mimic_pl.data.template import TextTemplate
from mimic_pl.errors import ConfigError

Item = dict[str, Any]


class TokenTable:
    """Tokens of many texts as two compact arrays.

    The arrays are of the smallest integers that hold the ids: with CLIP's 49,408 tokens a text of 40 takes 81 bytes.

    Args:
        texts: One text per record; they are taken in chunks, so that a generator's are never all there at once.
        preprocessor: Tokenizes, padding on the right to one length.
        name: What the progress bar calls them.
        count: How many there are, where ``texts`` can not tell.
        chunk: How many are tokenized at once.

    Raises:
        ConfigError: The tokenizer pads on the left, or to different lengths.
    """

    def __init__(
        self,
        texts: Iterable[str],
        preprocessor: Preprocessor,
        name: str,
        count: int | None = None,
        chunk: int = 4096,
    ) -> None:
        count = len(texts) if count is None else count  # type: ignore[arg-type]
        left = iter(texts)
        self.ids = np.zeros((count, 1), np.uint8)
        self.lengths = np.zeros(count, np.uint8)
        starts = range(0, count, chunk)
        for start in tqdm(starts, desc=f"Tokenizing {name}", unit="chunk", leave=False, disable=len(starts) < 4):
            ids, mask = preprocessor.tokenize(list(itertools.islice(left, chunk)))
            length = mask.sum(dim=1)
            if not torch.equal(mask.bool(), torch.arange(mask.shape[1]) < length[:, None]):
                raise ConfigError("The encoder's tokenizer does not pad on the right. Set its padding_side to 'right'.")
            if start == 0:
                self.ids = np.zeros((count, ids.shape[1]), np.uint8)
                self.lengths = self.lengths.astype(np.min_scalar_type(ids.shape[1]))
            elif ids.shape[1] != self.ids.shape[1]:
                raise ConfigError(
                    f"The encoder's tokenizer pads some texts to {self.ids.shape[1]} tokens and some to "
                    f"{ids.shape[1]}. Let it pad all to one length."
                )
            needed = np.result_type(np.min_scalar_type(int(ids.min())), np.min_scalar_type(int(ids.max())))
            wide = np.result_type(self.ids, needed)
            self.ids = self.ids.astype(wide, copy=False)  # seldom twice: the first chunk shows most of a vocabulary
            self.ids[start : start + chunk] = ids.numpy()
            self.lengths[start : start + chunk] = length.numpy()

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask`` of a text, int64 ``[text_tokens]``."""
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        return ids, (torch.arange(len(ids)) < int(self.lengths[index])).long()


class _Side:
    """What a side's item is made of: tokens, pixels, and whether there is a picture."""

    def __init__(
        self,
        records: Sequence[Entity] | Sequence[Mention],
        template: TextTemplate,
        pictures: PictureFolder,
        preprocessor: Preprocessor,
        name: str,
    ) -> None:
        self.tokens = TokenTable((template(record) for record in records), preprocessor, name, len(records))
        self.pictures = pictures
        self.preprocessor = preprocessor

    def item(self, index: int, names: Sequence[str]) -> tuple[Item, list[Failure]]:
        picture, failures = self.pictures.first_readable(names)
        ids, mask = self.tokens[index]
        size = self.preprocessor.image_size
        pixels = torch.zeros(3, size, size, dtype=torch.uint8) if picture is None else self.preprocessor.pixels(picture)
        item = {"input_ids": ids, "attention_mask": mask, "pixels": pixels, "has_picture": picture is not None}
        return item, failures


class EntityDataset(Dataset[Item]):
    """Entities by position, with their first picture; or with a random one, for training."""

    def __init__(
        self,
        entities: Sequence[Entity],
        template: TextTemplate,
        pictures: PictureFolder,
        preprocessor: Preprocessor,
    ) -> None:
        self.entities = entities
        self.side = _Side(entities, template, pictures, preprocessor, "entities")

    def __len__(self) -> int:
        """Number of items."""
        return len(self.entities)

    def __getitem__(self, index: int) -> Item:
        """The item at a position."""
        entity, failures = self.side.item(index, self.entities[index].pictures)
        return {"entities": entity, "index": index, "failures": failures}

    def with_picture_first(self, index: int, first: int) -> tuple[Item, list[Failure]]:
        """The entity's item with the picture at ``first``, or the next one that opens."""
        names = self.entities[index].pictures
        return self.side.item(index, names[first:] + names[:first])


class MentionDataset(Dataset[Item]):
    """Mentions of a split, with the positions of their golds in the knowledge base (-1: not there)."""

    def __init__(
        self,
        mentions: Sequence[Mention],
        positions: Mapping[str, int],
        template: TextTemplate,
        pictures: PictureFolder,
        preprocessor: Preprocessor,
        name: str,
    ) -> None:
        self.mentions = mentions
        self.golds = [[positions[gold] for gold in mention.golds if gold in positions] for mention in mentions]
        self.width = max((len(golds) for golds in self.golds), default=0)
        self.side = _Side(mentions, template, pictures, preprocessor, name)

    def __len__(self) -> int:
        """Number of items."""
        return len(self.mentions)

    def __getitem__(self, index: int) -> Item:
        """The item at a position."""
        picture = self.mentions[index].picture
        mention, failures = self.side.item(index, (picture,) if picture else ())
        golds = self.golds[index]
        gold = torch.tensor(golds + [-1] * (self.width - len(golds)), dtype=torch.int64)
        return {"mentions": mention, "gold": gold, "index": index, "failures": failures}


class TrainingDataset(Dataset[Item]):
    """Pairs of a mention and its gold entity; only mentions with a gold in the knowledge base are in it.

    Items are addressed by ``epoch * len + index`` (see :class:`~mimic_pl.data.sampler.TrainSampler`).
    """

    def __init__(self, mentions: MentionDataset, entities: EntityDataset, kept: Sequence[int], seed: int) -> None:
        self.mentions = mentions
        self.entities = entities
        self.kept = list(kept)
        self.seed = seed

    def __len__(self) -> int:
        """Number of items."""
        return len(self.kept)

    def __getitem__(self, address: int) -> Item:
        """The item at an address."""
        epoch, place = divmod(address, len(self.kept))
        index = self.kept[place]
        item = self.mentions[index]
        gold = self.mentions.golds[index][0]
        count = len(self.entities.entities[gold].pictures)
        first = draw(count, self.seed, epoch, index) if count > 1 else 0
        item["entities"], failures = self.entities.with_picture_first(gold, first)
        return {**item, "gold": gold, "failures": item["failures"] + failures}


def collate(items: list[Item]) -> dict[str, Any]:
    """Items -> a batch: tensors ``[batch, ...]`` by side, and all failures in one list."""
    batch: dict[str, Any] = {"failures": [failure for item in items for failure in item["failures"]]}
    for key in items[0]:
        values = [item[key] for item in items]
        if key in ("mentions", "entities"):
            batch[key] = {
                name: torch.tensor([value[name] for value in values])
                if name == "has_picture"
                else torch.stack([value[name] for value in values])
                for name in values[0]
            }
        elif key != "failures":
            batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else torch.tensor(values)
    return batch


def collate_cut(items: list[Item]) -> dict[str, Any]:
    """A batch of entities as :func:`collate` makes it, with the padding cut off that its longest text does not need."""
    batch = collate(items)
    side = batch["entities"]
    longest = max(1, int(side["attention_mask"].sum(dim=1).max()))
    for name in ("input_ids", "attention_mask"):
        side[name] = side[name][:, :longest].contiguous()
    return batch
