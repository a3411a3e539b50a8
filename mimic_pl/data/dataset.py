"""Records -> batches: texts are tokenized once, images are loaded on demand."""

from __future__ import annotations

import itertools
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info
from tqdm.auto import tqdm

from mimic_pl.batch import Batch, ImageFailure, Inputs
from mimic_pl.data.pixels import PixelSource
from mimic_pl.data.sampler import draw
from mimic_pl.data.training_split import seen_in_training
from mimic_pl.errors import ConfigError
from mimic_pl.processor import Processor, TextTokenizer
from mimic_pl.records import Entity, Mention

_OFTEN_CUT = 0.25
"""Share of texts that fill all tokens from which it is logged."""

_log = logging.getLogger(__name__)

InputTransform = Callable[[Inputs, Sequence[int]], None]
"""Changes one side of a training batch in place, given a random seed per item."""


class TokenTable:
    """Tokens of many texts as two compact arrays.

    The arrays use the smallest sufficient integer type: with CLIP's vocabulary of 49,408, a text of 40 tokens takes 81
    bytes.

    Args:
        texts: One text per record; consumed in chunks, so that a generator's texts are never all in memory.
        tokenizer: Pads on the right to one length.
        name: Name of the texts in the progress bar.
        count: Number of texts, if ``texts`` has no length.
        chunk: Number of texts tokenized at once.

    Raises:
        ConfigError: The tokenizer pads on the left, or to different lengths.
    """

    def __init__(
        self,
        texts: Iterable[str],
        tokenizer: TextTokenizer,
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
            ids, mask = tokenizer(list(itertools.islice(left, chunk)))
            length = mask.sum(dim=1)
            if not torch.equal(mask.bool(), torch.arange(mask.shape[1]) < length[:, None]):
                raise ConfigError("The encoder's tokenizer does not pad on the right. Set its padding_side to 'right'.")
            if start == 0:
                self.ids = np.zeros((count, ids.shape[1]), np.uint8)
                self.lengths = self.lengths.astype(np.min_scalar_type(ids.shape[1]))
            elif ids.shape[1] != self.ids.shape[1]:
                raise ConfigError(
                    f"The encoder's tokenizer pads some texts to {self.ids.shape[1]} tokens and others to "
                    f"{ids.shape[1]}. Make it pad all texts to one length."
                )
            needed = np.result_type(np.min_scalar_type(int(ids.min())), np.min_scalar_type(int(ids.max())))
            wide = np.result_type(self.ids, needed)
            self.ids = self.ids.astype(wide, copy=False)  # rarely more than once: later chunks have similar ids
            self.ids[start : start + chunk] = ids.numpy()
            self.lengths[start : start + chunk] = length.numpy()
        width = self.ids.shape[1]
        full = float(np.mean(self.lengths == width)) if count and width > 1 else 0.0
        if full > _OFTEN_CUT:
            _log.info(
                f"{full:.0%} of the texts of {name} fill all {width} tokens: what follows is cut. A larger text_length "
                "of the encoder keeps more, and takes longer in proportion."
            )

    def __getitem__(self, index: int | Sequence[int]) -> tuple[Tensor, Tensor]:
        """``input_ids`` and ``attention_mask``, int64 ``[text_tokens]``, or ``[n, text_tokens]`` of several texts."""
        ids = torch.from_numpy(self.ids[index].astype(np.int64))
        lengths = torch.from_numpy(np.asarray(self.lengths[index], np.int64))
        return ids, (torch.arange(ids.shape[-1]) < lengths[..., None]).long()


class _Side:
    """Inputs of one side (mentions or entities): tokens, pixels, and additional features of its records."""

    def __init__(
        self,
        texts: Iterable[str],
        features: Callable[[Sequence[int]], Inputs],
        pixels: PixelSource,
        processor: Processor,
        name: str,
        count: int,
    ) -> None:
        self.tokens = TokenTable(texts, processor.tokenizer, name, count)
        self.image_inputs = processor.image_inputs
        self.features = features
        self.pixels = pixels

    def inputs(self, indices: Sequence[int], names: Sequence[Sequence[str]]) -> tuple[Inputs, list[ImageFailure]]:
        """Inputs of the records at these indices, each with its first image that opens."""
        pixels, has_image, failures = self.pixels.batch(names, indices)
        ids, mask = self.tokens[indices]
        tokens = {"input_ids": ids, "attention_mask": mask}
        return {**tokens, **self.image_inputs(pixels, has_image), **self.features(indices)}, failures


class BatchDataset(Dataset[Batch], ABC):
    """A dataset whose items are created as batches, through ``__getitems__`` of torch's loader."""

    @abstractmethod
    def __getitems__(self, indices: list[int]) -> Batch:
        """The items at these indices: tensors ``[batch, ...]``, and all failures in one list."""

    def __getitem__(self, index: int | list[int]) -> Batch:
        """The item at an index, as a batch of one; or the batch for the indices of a batch sampler."""
        return self.__getitems__(index if isinstance(index, list) else [index])


class EntityDataset(BatchDataset):
    """Entities by position, with their first image; for training, with a random one.

    Args:
        entities: The knowledge base.
        processor: Turns them into inputs.
        pixels: Loads their images.
    """

    def __init__(self, entities: Sequence[Entity], processor: Processor, pixels: PixelSource) -> None:
        self.entities = entities
        self.processor = processor
        texts = map(processor.entity_text, entities)
        self.side = _Side(texts, self._features, pixels, processor, "the knowledge base", len(entities))

    def _features(self, indices: Sequence[int]) -> Inputs:
        return self.processor.entity_features([self.entities[index] for index in indices])

    def __len__(self) -> int:
        """Number of items."""
        return len(self.entities)

    def __getitems__(self, indices: list[int]) -> Batch:
        """The items at these positions."""
        entities, failures = self.side.inputs(indices, [self.entities[index].image_files for index in indices])
        return {"entities": entities, "index": torch.tensor(indices), "failures": failures}

    def with_image_first(self, indices: Sequence[int], firsts: Sequence[int]) -> tuple[Inputs, list[ImageFailure]]:
        """Inputs of entities, each with the image at index ``firsts[i]``, or the next one that opens."""
        images = [self.entities[index].image_files for index in indices]
        names = [own[first:] + own[:first] for own, first in zip(images, firsts, strict=True)]
        return self.side.inputs(indices, names)


class MentionDataset(BatchDataset):
    """Mentions of a split, with the positions of their golds in the knowledge base (padded with -1).

    A batch also contains, if some mention of the split has several golds, how many each has (``gold_count``), and, if
    the golds seen in training are known, whether each mention's gold was (``seen``, see
    :mod:`mimic_pl.data.training_split`); both int64 ``[batch]``.

    Args:
        mentions: The split.
        positions: Position of each entity in the knowledge base.
        processor: Turns mentions into inputs.
        pixels: Loads their images.
        name: Name of the mentions in progress bars.
        seen: Golds seen in training, if known.
    """

    def __init__(
        self,
        mentions: Sequence[Mention],
        positions: Mapping[str, int],
        processor: Processor,
        pixels: PixelSource,
        name: str,
        seen: frozenset[str] | None = None,
    ) -> None:
        self.mentions = mentions
        self.processor = processor
        counts = [len(mention.golds) for mention in mentions]
        self.gold_count = torch.tensor(counts) if max(counts, default=0) > 1 else None
        self.seen = None if seen is None else torch.tensor([seen_in_training(mention, seen) for mention in mentions])
        self.golds = [[positions[gold] for gold in mention.golds if gold in positions] for mention in mentions]
        self.width = max((len(golds) for golds in self.golds), default=0)
        texts = map(processor.mention_text, mentions)
        self.side = _Side(texts, self._features, pixels, processor, name, len(mentions))

    def _features(self, indices: Sequence[int]) -> Inputs:
        return self.processor.mention_features([self.mentions[index] for index in indices])

    def __len__(self) -> int:
        """Number of items."""
        return len(self.mentions)

    def __getitems__(self, numbers: list[int]) -> Batch:
        """The items at these positions; numbers beyond the length are padding items, with ``index`` -1.

        See :class:`~mimic_pl.data.sampler.EvalSampler`.
        """
        indices = [number % len(self.mentions) for number in numbers]
        mentions, failures = self.side.inputs(indices, [self.mentions[index].image_files for index in indices])
        golds = [self.golds[index] + [-1] * (self.width - len(self.golds[index])) for index in indices]
        gold = torch.tensor(golds, dtype=torch.int64).view(len(indices), self.width)
        index = torch.tensor([number if number < len(self.mentions) else -1 for number in numbers])
        batch: Batch = {"mentions": mentions, "gold": gold, "index": index, "failures": failures}
        if self.gold_count is not None:
            batch["gold_count"] = self.gold_count[indices]
        if self.seen is not None:
            batch["seen"] = self.seen[indices]
        return batch


class TrainingDataset(BatchDataset):
    """Pairs of a mention and its gold entity, for mentions with a gold in the knowledge base.

    The ``entities`` of a batch are one gold per mention (if a mention has several, one is drawn each epoch), and
    ``columns`` are their positions.

    Items are addressed by ``epoch * len + index`` (see :class:`~mimic_pl.data.sampler.TrainSampler`).

    Args:
        mentions: The training split.
        entities: The knowledge base.
        kept: Indices of the mentions to train on.
        seed: Seed of all random choices.
        transforms: Transforms by side (``mentions`` or ``entities``), each called with that side of the batch and a
            seed per item.
        negatives: Positions of hard negatives for each mention of the split, int64 ``[mentions, negatives]`` padded
            with -1. In shared memory, so that loader processes see later updates. A batch then contains one of them per
            mention, after the golds.
        versions: Number of different results of the transforms for a record, one an epoch in turn, so that features of
            frozen towers can be cached; by default those of every epoch are new.
    """

    def __init__(
        self,
        mentions: MentionDataset,
        entities: EntityDataset,
        kept: Sequence[int],
        seed: int,
        transforms: Mapping[str, Sequence[InputTransform]] | None = None,
        negatives: Tensor | None = None,
        versions: int | None = None,
    ) -> None:
        self.mentions = mentions
        self.entities = entities
        self.kept = list(kept)
        self.seed = seed
        self.transforms = transforms or {}
        self.negatives = negatives
        self.versions = versions

    def __len__(self) -> int:
        """Number of items."""
        return len(self.kept)

    def __getitems__(self, addresses: list[int]) -> Batch:
        """The items at these addresses."""
        indices, golds, firsts = [], [], []
        for address in addresses:
            epoch, place = divmod(address, len(self.kept))
            index = self.kept[place]
            candidates = self.mentions.golds[index]
            # Not the seed of the image, so that the two draws are independent.
            gold = candidates[draw(len(candidates), self.seed + 1, epoch, index) if len(candidates) > 1 else 0]
            count = len(self.entities.entities[gold].images)
            indices.append(index)
            golds.append(gold)
            firsts.append(draw(count, self.seed, epoch, index) if count > 1 else 0)
        batch = self.mentions.__getitems__(indices)
        hard, owners = self._hard_negatives(addresses, indices)
        entities, failures = self.entities.with_image_first(golds + hard, firsts + [0] * len(hard))
        made: Batch = {
            "mentions": batch["mentions"],
            "entities": entities,
            "gold": batch["gold"],
            "columns": torch.tensor(golds + hard),
            "index": batch["index"],
            "failures": batch["failures"] + failures,
        }
        of_mentions, of_entities = self._seeds(addresses, 0), self._seeds(addresses, 1) + self._seeds(owners, 2)
        for side, inputs, seeds in (
            ("mentions", made["mentions"], of_mentions),
            ("entities", made["entities"], of_entities),
        ):
            if not self.transforms.get(side):
                continue
            for transform in self.transforms[side]:
                transform(inputs, seeds)
            inputs.pop("image_key", None)  # images that differ in every epoch: do not cache their features
            if self.versions is not None:
                inputs.update(self.mentions.side.image_inputs(inputs["pixels"], inputs["has_image"]))
        return made

    def mentions_and_names(self) -> tuple[list[str], list[str]]:
        """The words of each item's mention, and the name of its first gold."""
        entities = self.entities.entities
        firsts = [self.mentions.golds[index][0] for index in self.kept]
        return [self.mentions.mentions[index].mention for index in self.kept], [entities[gold].name for gold in firsts]

    def _seeds(self, addresses: Sequence[int], purpose: int) -> list[int]:
        """Seeds of the transforms, by epoch and mention, or by version and mention."""
        if self.versions is not None:
            addresses = [address % (self.versions * len(self.kept)) for address in addresses]
        return [draw(2**62, self.seed, address, purpose) for address in addresses]

    def _hard_negatives(self, addresses: Sequence[int], indices: Sequence[int]) -> tuple[list[int], list[int]]:
        """One hard negative for each mention that has any, and the addresses of these mentions."""
        if self.negatives is None:
            return [], []
        hard, owners = [], []
        for address, index in zip(addresses, indices, strict=True):
            mined = self.negatives[index]
            known = int((mined >= 0).sum())
            if known:
                # A separate seed, so that the draw is independent of the others.
                hard.append(int(mined[draw(known, self.seed + 2, address // len(self.kept), index)]))
                owners.append(address)
        return hard, owners


def collate(batch: Any) -> Batch:
    """Collate function for batches of :class:`BatchDataset`, which are complete already."""
    made: Batch = _in_shared_memory(batch)
    return made


def collate_cut(batch: Any) -> Batch:
    """Collate function for entities that cuts padding to the longest text."""
    side = batch["entities"]
    longest = max(1, int(side["attention_mask"].sum(dim=1).max()))
    for name in ("input_ids", "attention_mask"):
        side[name] = side[name][:, :longest].contiguous()
    return collate(batch)


def _in_shared_memory(batch: Any) -> Any:
    """In a loader process, move the batch to shared memory.

    Torch does this itself, but in a thread that only prints errors: with shared memory exhausted, the batch would be
    lost and the training process would wait for it forever.
    """
    if get_worker_info() is None:
        return batch
    if isinstance(batch, dict):
        return {name: _in_shared_memory(value) for name, value in batch.items()}
    if isinstance(batch, Tensor) and batch.numel():
        batch.share_memory_()  # type: ignore[no-untyped-call]
    return batch
