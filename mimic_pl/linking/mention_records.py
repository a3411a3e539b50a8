"""Mentions as users give them: records with offsets or spans, and the entities that each may mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from mimic_pl.errors import DataError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.quoting import quoted
from mimic_pl.ranking.lance_dataset import sql_text, storable
from mimic_pl.ranking.text_columns import TYPE
from mimic_pl.records import Mention
from mimic_pl.retrieval import Allowed

_RESTRICTING = ("entity_type", "candidates", "filter")


def mentions_of(record: object, image_folder: Path | None = None) -> list[Mention]:
    """The mentions of a record, which are several if it has ``spans``.

    Args:
        record: A mention, or a dictionary with the keys of :meth:`Mention.of` and those of :class:`Restriction`.
        image_folder: Folder that relative paths of images begin in; by default the working directory.

    Raises:
        DataError: The record is malformed, or is itself an error of a reader.
    """
    if isinstance(record, DataError):
        raise record
    if isinstance(record, Mapping):
        record = {key: value for key, value in record.items() if key not in _RESTRICTING or value is not None}
        if isinstance(record.get("candidates"), (list, tuple, set, frozenset)):
            record["candidates"] = json.dumps([str(id) for id in record["candidates"]])
        mentions = Mention.all_of(record)
    else:
        mentions = [Mention.of(record)]  # type: ignore[arg-type]  # raises for what is neither
    for mention in mentions:
        if not all(map(storable, (mention.mention, mention.sentence, *mention.fields.values()))):
            raise DataError(
                f"The mention {quoted(mention.mention)} or its texts contain half of a character, which no tokenizer "
                "reads. Remove it from the record."
            )
    return mentions if image_folder is None else [_located(mention, image_folder) for mention in mentions]


def _located(mention: Mention, folder: Path) -> Mention:
    if not isinstance(mention.image, (str, Path)):
        return mention
    fields = {name: getattr(mention, name) for name in Mention.__slots__}
    return Mention(**{**fields, "image": str(folder / mention.image)})


@dataclass(frozen=True, slots=True)
class Restriction:
    """The entities that a mention may mean; those that all given conditions allow.

    They are fields of the mention, and empty ones restrict nothing:

    - ``entity_type``: the entity's ``type``;
    - ``candidates``: a list of ids, which must be known;
    - ``filter``: a condition over the columns of the knowledge base (see :meth:`KnowledgeBase.where`).

    Attributes:
        entity_type: The type; ``None`` for any.
        candidates: The ids; ``None`` for any.
        filters: The conditions.
    """

    entity_type: str | None = None
    candidates: tuple[str, ...] | None = None
    filters: tuple[str, ...] = ()

    @classmethod
    def of(cls, mention: Mention, filter: str | None = None) -> Restriction:
        """The restriction of a mention.

        Args:
            mention: The mention.
            filter: A condition for all mentions.

        Raises:
            DataError: ``candidates`` is not a list of ids.
        """
        own = (mention.fields.get(name, "") for name in _RESTRICTING)
        entity_type, candidates, condition = own
        filters = tuple(expression for expression in (filter, condition) if expression)
        return cls(entity_type or None, _ids(candidates) if candidates else None, filters)

    def __bool__(self) -> bool:
        """Whether anything is restricted."""
        return self != Restriction()

    def allowed(self, knowledge_base: KnowledgeBase) -> Allowed:
        """The entities that are allowed, in ascending order.

        Raises:
            DataError: A candidate is unknown, a condition cannot be evaluated, or the entities have no types.
        """
        condition = self._condition(knowledge_base)
        if self.candidates is None:
            of_type = None if self.filters else self.entity_type
            return Allowed(knowledge_base.where(condition), condition, of_type)
        order = knowledge_base.order_of(list(dict.fromkeys(self.candidates))).sort().values
        return Allowed(order[torch.isin(order, knowledge_base.where(condition))] if condition else order)

    def _condition(self, knowledge_base: KnowledgeBase) -> str:
        """The type and the filters as a condition over the columns of a knowledge base."""
        expressions = list(self.filters)
        if self.entity_type is not None:
            if TYPE not in knowledge_base.columns:
                raise DataError(
                    f"The mention is to be linked to entities of the type {quoted(self.entity_type)}, but the entities "
                    f"of {knowledge_base.folder} have no field {TYPE!r}. Index them with one, or use 'filter'."
                )
            expressions.append(f"{TYPE} = {sql_text(self.entity_type)}")
        return " and ".join(f"({expression})" for expression in expressions)


def _ids(text: str) -> tuple[str, ...]:
    """The ids of a text: a list in JSON, or one id."""
    if not text.lstrip().startswith("["):
        return (text,)
    try:
        found = json.loads(text)
    except ValueError as error:
        raise DataError(f"'candidates' of the mention is {quoted(text)}; it must be a list of ids.") from error
    if not all(isinstance(id, (str, int)) and not isinstance(id, bool) for id in found):
        raise DataError(f"'candidates' of the mention is {quoted(text)}; it must be a list of ids.")
    return tuple(map(str, found))
