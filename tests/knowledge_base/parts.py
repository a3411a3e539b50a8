"""Small knowledge bases whose states follow from an entity's record."""

from __future__ import annotations

import importlib
import warnings
from pathlib import Path

import torch

from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.records import Entity

DESCRIPTION = {"model": "0" * 64, "text template": "{name}"}
MENTIONS = 5
"""Mentions whose scores against an entity are its state."""

_TABLE = torch.randint(-2, 3, (7, MENTIONS), generator=torch.Generator().manual_seed(0)).float() / 2


def record(name: str, group: int = 0, **fields: str) -> Entity:
    """An entity; all entities of one group have equal states."""
    return Entity(name, f"name of {name}", {"group": str(group % 7), **fields}, (f"{name}.jpg",))


def states_of(entities):
    """The states of entities, which their group decides."""
    return {"text": {"column": _TABLE[[int(entity.fields["group"]) for entity in entities]]}}


def add(kb: KnowledgeBase, *entities: Entity, **options) -> KnowledgeBase:
    return kb.add(entities, states_of(entities), **options)


def update(kb: KnowledgeBase, *entities: Entity) -> KnowledgeBase:
    return kb.update(entities, states_of(entities))


def created(folder: Path, *entities: Entity, **options) -> KnowledgeBase:
    kb = KnowledgeBase.create(folder, DESCRIPTION, **options)
    return add(kb, *entities) if entities else kb


def content(kb: KnowledgeBase) -> dict[str, tuple[int, Entity, list[float]]]:
    """Order number, record and states by id."""
    found = {}
    for order, block in kb.index.blocks(1000):
        columns = block.states["text"]["column"].tolist()
        for number, entity, column in zip(order.tolist(), kb.entities(order), columns, strict=True):
            assert entity.id not in found
            found[entity.id] = number, entity, column
    return found


def import_lance() -> None:
    """Import Lance without using it, so that the processes that are forked from this one start fast."""
    warnings.filterwarnings("ignore", message="lance is not fork-safe")
    importlib.import_module("lance")
