"""Which entities a name may mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from mimic_pl.formats.plain_layout import ALIAS_SEPARATOR, ALIASES
from mimic_pl.records import Entity


def names_of(entity: Entity) -> list[str]:
    """The name of an entity and its aliases, each once.

    Example:
        >>> names_of(Entity("Q41421", "Michael Jordan", {"aliases": "Air Jordan | Michael Jordan | MJ"}))
        ['Michael Jordan', 'Air Jordan', 'MJ']
    """
    others = entity.fields.get(ALIASES, "").split(ALIAS_SEPARATOR)
    return list(dict.fromkeys(name for name in (entity.name, *others) if name.strip()))


class EntitiesByName:
    """Collects the entities of each name. It is kept in memory: about 200 bytes for a name."""

    def __init__(self) -> None:
        self._ids: dict[str, dict[str, None]] = {}

    def add(self, entity: Entity) -> None:
        """Add the names of an entity."""
        for name in names_of(entity):
            self._ids.setdefault(name, {})[entity.id] = None

    def priors(self) -> Mapping[str, Mapping[str, float]]:
        """By name, the entities that have it, with equal shares as priors, since nothing is known about their use."""
        return {name: dict.fromkeys(ids, 1 / len(ids)) for name, ids in self._ids.items()}

    def rows(self) -> Iterator[dict[str, str | float]]:
        """The table as records with ``alias``, ``id`` and ``prior``."""
        for name, ids in self._ids.items():
            for entity_id in ids:
                yield {"alias": name, "id": entity_id, "prior": 1 / len(ids)}
