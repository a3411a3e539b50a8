"""Candidate lists: the first stage's top entities of each mention, on which a reranker is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from tqdm.auto import tqdm

from mimic_pl.data.table import EntityTable
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.files import UNFINISHED_SUFFIX, write_error
from mimic_pl.model import MIMIC
from mimic_pl.quoting import quoted
from mimic_pl.ranking import EntityIndex, Ranker
from mimic_pl.records import Entity, Mention

_BATCH = 64

_ORIGIN = "mimic_pl.first_stage"
"""Key in the metadata of a file of lists."""


@dataclass(frozen=True)
class CandidateLists:
    """The top entities of mentions, best first.

    Attributes:
        mentions: The mentions.
        entities: The knowledge base, in the order of positions.
        order: Positions of each mention's candidates, int64 ``[mentions, k]``.
        scores: Their overall scores in the first stage, float32 ``[mentions, k]``.
    """

    mentions: Sequence[Mention]
    entities: EntityTable
    order: Tensor
    scores: Tensor

    def __len__(self) -> int:
        """Number of lists."""
        return len(self.mentions)

    @property
    def gold(self) -> Tensor:
        """Whether a candidate is a gold of its mention, bool ``[mentions, k]``."""
        known = self.entities.positions
        golds = [[known[gold] for gold in mention.golds if gold in known] for mention in self.mentions]
        width = max(map(len, golds), default=0)
        padded = torch.tensor([own + [-1] * (width - len(own)) for own in golds]).view(len(golds), width)
        return self.order[:, :, None].eq(padded[:, None]).any(dim=2)

    def candidates(self, row: int) -> list[Entity]:
        """The candidates of a mention."""
        return [self.entities[position] for position in self.order[row].tolist()]

    @classmethod
    def joined(cls, parts: Sequence[CandidateLists], mentions: Sequence[Mention]) -> CandidateLists:
        """Lists of these mentions, in their order, from parts that have one of each."""
        rows = {mention.id: row for row, mention in enumerate(own for part in parts for own in part.mentions)}
        chosen = torch.tensor([rows[mention.id] for mention in mentions])
        order, scores = torch.cat([part.order for part in parts]), torch.cat([part.scores for part in parts])
        return cls(mentions, parts[0].entities, order[chosen], scores[chosen])

    def write(self, path: Path, origin: str) -> None:
        """Write the lists as Parquet: per mention its id, and ids and scores of its candidates.

        Args:
            path: The file.
            origin: What the lists were made by, which :meth:`read` compares.

        Raises:
            StoreError: The disk is full, or the folder is not writable.
        """
        ids = [[entity.id for entity in self.candidates(row)] for row in range(len(self))]
        mentions = [mention.id for mention in self.mentions]
        table = pa.table({"mention": mentions, "candidates": ids, "scores": self.scores.tolist()})
        table = table.replace_schema_metadata({_ORIGIN: origin})
        temporary = path.with_name(path.name + UNFINISHED_SUFFIX)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, temporary)
            temporary.replace(path)
        except OSError as error:
            raise write_error(error, path, table.nbytes) from error

    @classmethod
    def read(cls, path: Path, origin: str, mentions: Sequence[Mention], entities: EntityTable) -> CandidateLists:
        """Read lists of these mentions.

        Args:
            path: Parquet, from :meth:`write`.
            origin: What the lists must have been made by.
            mentions: The mentions that the lists were made for.
            entities: The knowledge base.

        Raises:
            DataError: The file cannot be read, or its lists are of other mentions or entities.
        """
        try:
            table = pq.read_table(path, columns=["mention", "candidates", "scores"])
            columns = table.to_pydict()
            scores = torch.tensor(columns["scores"], dtype=torch.float32)
        except (OSError, pa.ArrowException, ValueError, TypeError) as error:
            raise DataError(f"The candidate lists in {path} cannot be read: {error} Delete the file.") from error
        if (table.schema.metadata or {}).get(_ORIGIN.encode()) != origin.encode():
            raise DataError(
                f"The lists in {path} were made by another first stage, or of another length. Delete the file, or "
                "choose another folder."
            )
        if columns["mention"] != [mention.id for mention in mentions]:
            raise DataError(f"The lists in {path} are not those of these {len(mentions)} mentions. Delete the file.")
        known = entities.positions
        unknown = next((id for ids in columns["candidates"] for id in ids if id not in known), None)
        if unknown is not None:
            raise DataError(
                f"The candidate {quoted(unknown)} in {path} is not in the knowledge base, so the lists are of another "
                "one. Delete the file."
            )
        order = torch.tensor([[known[id] for id in ids] for ids in columns["candidates"]], dtype=torch.int64)
        return cls(mentions, entities, order, scores)


def first_stage_lists(
    model: MIMIC,
    mentions: Sequence[Mention],
    entities: EntityTable,
    index: EntityIndex,
    top_k: int,
    description: str | None = None,
) -> CandidateLists:
    """Rank the whole knowledge base for mentions, and keep the top of each list.

    Args:
        model: The first stage.
        mentions: The mentions.
        entities: The knowledge base.
        index: The same entities, encoded by the model: ``model.build_index(entities)``.
        top_k: Number of candidates; all lists have as many, or as many as there are entities.
        description: Title of the progress bar; without it, none is shown.

    Raises:
        ConfigError: There are no mentions.
    """
    if not mentions:
        raise ConfigError("There are no mentions to list candidates of.")
    ranker = Ranker(top_k, "cheap")
    order, scores = [], []
    bar = tqdm(range(0, len(mentions), _BATCH), description, unit="batch", leave=False, disable=description is None)
    for start in bar:
        states = model.encode_mentions(mentions[start : start + _BATCH])
        ranking = ranker(model.matcher, states, index)
        order.append(ranking.top_entities.cpu())
        scores.append(ranking.top_scores["overall"].float().cpu())
    return CandidateLists(mentions, entities, torch.cat(order), torch.cat(scores))
