"""Prior probabilities of entities given a word, from an alias table, for a unit that scores them."""

from __future__ import annotations

import math
import shutil
from array import array
from collections.abc import MutableSequence, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, DataError
from mimic_pl.formats import read_records
from mimic_pl.home import expanded
from mimic_pl.processor.record_features import RecordFeatures
from mimic_pl.processor.words import term_id
from mimic_pl.quoting import quoted
from mimic_pl.ranges import COUNT, in_range
from mimic_pl.records import Entity, Mention

_SAVED = "aliases"
"""Name, without suffix, of the table in a model's folder."""


class AliasTable(RecordFeatures):
    """Which entities a word means, and how often: its prior joins the score through a unit.

        S(mention, entity) = exp(tau) P(entity | word of the mention), 0 for entities that the table does not list

    The unit is :class:`~mimic_pl.units.Lexical`: an entity's only term is its id, and a mention's terms are the ids
    that its word may mean, weighted by their priors. In a configuration::

        model:
          class_path: mimic_pl.MIMIC
          init_args:
            processor:
              class_path: mimic_pl.processor.Processor
              init_args:
                features:
                  aliases: {class_path: mimic_pl.processor.AliasTable, init_args: {path: aliases.csv}}
            units+:
              prior: {class_path: mimic_pl.units.Lexical, init_args: {feature: aliases, scale: 5.0}}

    A word is compared without regard to case and blanks. Words without an entry have no priors.

    Args:
        path: File with the columns ``alias``, ``id`` and ``prior``, such as counts of links divided by their sum: CSV,
            TSV, JSON Lines, JSON or Parquet. Without ``prior``, the entities of an alias share it equally.
        max_entities: Maximum number of entities per alias; those with the largest priors are kept.

    Raises:
        DataError: The file cannot be read, a record has no alias or id, or a prior is negative or not finite.
        ConfigError: ``max_entities`` is below 1.
    """

    @in_range(max_entities=COUNT)
    def __init__(self, path: str, max_entities: int = 32) -> None:
        self.path = path
        self.max_entities = max_entities
        self._ids: dict[str, MutableSequence[int]] = {}
        self._priors: dict[str, MutableSequence[float]] = {}
        self._read(expanded(path))

    def __len__(self) -> int:
        """Number of aliases."""
        return len(self._ids)

    def mentions(self, records: Sequence[Mention], texts: Sequence[str]) -> dict[str, Tensor]:
        """``ids`` int64 and ``weights`` float32 of the entities of each word, ``[mentions, max_entities]``."""
        ids = torch.zeros(len(records), self.max_entities, dtype=torch.int64)
        weights = torch.zeros(len(records), self.max_entities)
        for row, mention in enumerate(records):
            alias = _normal(mention.mention)
            if alias in self._ids:
                count = len(self._ids[alias])
                ids[row, :count] = torch.tensor(self._ids[alias])
                weights[row, :count] = torch.tensor(self._priors[alias])
        return {"ids": ids, "weights": weights}

    def entities(self, records: Sequence[Entity], texts: Sequence[str]) -> dict[str, Tensor]:
        """The hash of each id as ``ids``, int64 ``[entities, 1]``, and ``weights`` of 1."""
        ids = torch.tensor([term_id(entity.id) for entity in records], dtype=torch.int64)
        return {"ids": ids[:, None], "weights": torch.ones(len(records), 1)}

    def describe(self) -> str:
        """What the vectors of entities depend on: their ids alone."""
        return "AliasTable"

    def save_config(self, folder: Path) -> None:
        """Copy the file of the table into the folder."""
        path = expanded(self.path)
        try:
            shutil.copyfile(path, folder / f"{_SAVED}{''.join(path.suffixes)}")
        except FileNotFoundError as error:
            raise ConfigError(f"{path} no longer exists: a saved model contains its alias table.") from error

    @classmethod
    def config_arguments(cls, folder: Path) -> dict[str, Any]:
        """The copy in place of the file."""
        return {"path": str(next(folder.glob(f"{_SAVED}.*"), folder / _SAVED))}

    def _read(self, path: Path) -> None:
        found: dict[str, dict[int, float | None]] = {}
        for unit, number, row in read_records(path, None):
            where = f"{path}, {unit} {number}"
            if isinstance(row, DataError):  # a line that could not be read
                raise DataError(f"{where}: {row}") from row
            if not isinstance(row, dict):
                raise DataError(f"{where}: {quoted(row)} is not a record with 'alias', 'id' and 'prior'.")
            missing = [key for key in ("alias", "id") if row.get(key) in (None, "")]
            if missing:
                raise DataError(f"{where}: there is no {missing[0]!r}. An alias table has 'alias', 'id' and 'prior'.")
            prior = _prior(row.get("prior"), where)
            own = found.setdefault(_normal(str(row["alias"])), {})
            id = term_id(str(row["id"]))
            own[id] = prior if own.get(id) is None or prior is None else prior + (own[id] or 0.0)
        for alias, own in found.items():
            priors = {id: 1 / len(own) if prior is None else prior for id, prior in own.items()}
            kept = sorted(priors, key=lambda id: -priors[id])[: self.max_entities]
            self._ids[alias] = array("q", kept)
            self._priors[alias] = array("f", (priors[id] for id in kept))


def _normal(word: str) -> str:
    return " ".join(word.casefold().split())


def _prior(value: object, where: str) -> float | None:
    if value in (None, ""):
        return None
    try:
        prior = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        prior = math.nan
    if not 0 <= prior < math.inf:
        raise DataError(f"{where}: 'prior' is {quoted(value)}; it must be a number from 0, such as a probability.")
    return prior
