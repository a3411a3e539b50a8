"""The data module of a cross-encoder's training: candidate lists with a gold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from mimic_pl.errors import DataError
from mimic_pl.ranges import COUNT, NATURAL, SEED, Range, in_range
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval.candidates import CandidateLists
from mimic_pl.retrieval.cross_encoder import CrossEncoder


class ListBatch(NamedTuple):
    """Some candidate lists of equal length.

    Attributes:
        inputs: What the cross-encoder reads, ``lists that it reads * k`` pairs: rows of the pairs and their inputs, see
            :meth:`CrossEncoder.batches`; empty if it reads none.
        scores: Scores of the first stage, float32 ``[lists, k]``.
        gold: Whether a candidate is a gold, bool ``[lists, k]``.
        read: Whether the cross-encoder reads a list, bool ``[lists]``.
    """

    inputs: list[tuple[Tensor, dict[str, Tensor]]]
    scores: Tensor
    gold: Tensor
    read: Tensor


class CandidateListData(LightningDataModule):
    """Candidate lists of the first stage, to train and evaluate a cross-encoder on.

    A training list is the gold, as far up as the first stage has it, and the highest-scored wrong candidates. Mentions
    whose gold is not among the candidates are left out of training, since no reranking could find it; in the
    evaluation, of the first ``cross_encoder.top_k`` candidates, they count as misses. Lists beyond
    ``cross_encoder.largest_margin`` are left out of training, and count as the first stage has them.

    Args:
        lists: The lists by split: ``train``, ``val``, ``test``.
        cross_encoder: Encodes the pairs.
        batch_size: Lists per training batch.
        train_candidates: Candidates of a training list, the gold among them.
        num_workers: Loader processes.
        seed: Seed of the order of the training lists.

    Raises:
        ConfigError: An argument is out of range.
    """

    @in_range(
        batch_size=COUNT,
        train_candidates=Range(2),
        num_workers=NATURAL,
        seed=SEED,
    )
    def __init__(
        self,
        lists: dict[str, CandidateLists],
        cross_encoder: CrossEncoder,
        batch_size: int = 16,
        train_candidates: int = 4,
        num_workers: int = 0,
        seed: int = 43,
    ) -> None:
        super().__init__()
        self.lists = lists
        self.cross_encoder = cross_encoder
        self.batch_size = batch_size
        self.train_candidates = train_candidates
        self.num_workers = num_workers
        self.seed = seed

    def train_dataloader(self) -> DataLoader[ListBatch]:
        """Shuffled training lists.

        Raises:
            DataError: No list that the cross-encoder reads has its gold.
        """
        lists = self.lists["train"]
        rows, columns = training_lists(lists, self.train_candidates, self.cross_encoder.reads(lists.scores))
        if not len(rows):
            raise DataError(
                "No training mention has its gold among the first stage's candidates, in a list that the cross-encoder "
                f"reads (largest_margin: {self.cross_encoder.largest_margin}). Increase the margin, if there is one, "
                "or train the first stage better."
            )
        generator = torch.Generator().manual_seed(self.seed)
        return self._loader("train", rows, columns, self.batch_size, shuffle=True, generator=generator)

    def val_dataloader(self) -> DataLoader[ListBatch]:
        """The lists of the validation split, whole and in order."""
        return self._whole("val")

    def test_dataloader(self) -> DataLoader[ListBatch]:
        """The lists of the test split, whole and in order."""
        return self._whole("test")

    def _whole(self, split: str) -> DataLoader[ListBatch]:
        lists = self.lists[split]
        k = min(self.cross_encoder.top_k, lists.order.shape[1])
        return self._loader(split, torch.arange(len(lists)), torch.arange(k).expand(len(lists), -1), self.batch_size)

    def _loader(
        self, split: str, rows: Tensor, columns: Tensor, batch_size: int, **kwargs: Any
    ) -> DataLoader[ListBatch]:
        lists = self.lists[split]
        gold = lists.gold

        def batch(numbers: Sequence[int]) -> ListBatch:
            own, picked = rows[list(numbers)], columns[list(numbers)]
            scores = lists.scores[own]
            read = self.cross_encoder.reads(scores)
            pairs: list[tuple[Mention, Entity]] = [
                (lists.mentions[row], lists.entities[position])
                for row, kept in zip(own[read].tolist(), picked[read], strict=True)
                for position in lists.order[row, kept].tolist()
            ]
            inputs = [(rows, dict(inputs)) for rows, inputs in self.cross_encoder.batches(pairs)]
            return ListBatch(inputs, scores.gather(1, picked), gold[own].gather(1, picked), read)

        return DataLoader(
            range(len(rows)),  # type: ignore[arg-type]  # a map-style data set of numbers
            batch_size,
            collate_fn=batch,
            num_workers=self.num_workers,
            multiprocessing_context="fork" if self.num_workers else None,
            **kwargs,
        )


def training_lists(lists: CandidateLists, size: int, read: Tensor) -> tuple[Tensor, Tensor]:
    """Choose the lists to train on, and their candidates.

    Args:
        lists: The first stage's lists.
        size: Candidates of each list.
        read: Lists to choose from, bool ``[lists]``.

    Returns:
        Rows of the lists, int64 ``[n]``, and columns of their candidates, int64 ``[n, size]``, ascending: the best gold
        and the best ``size - 1`` that are no golds.
    """
    gold = lists.gold
    kept = gold.any(dim=1) & read
    size = min(size, gold.shape[1])
    kept &= (~gold).sum(dim=1) >= size - 1
    rows = kept.nonzero()[:, 0]
    best = gold[rows].int().argmax(dim=1, keepdim=True)  # the first of the golds
    wrong = (~gold[rows]).int().argsort(dim=1, descending=True, stable=True)[:, : size - 1]
    return rows, torch.cat([best, wrong], dim=1).sort(dim=1).values
