"""A process that changes a knowledge base at random and keeps a journal of what has returned, until it is killed."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import torch

from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking import Ranker
from mimic_pl.ranking.lance_dataset import lance
from tests import reference
from tests.knowledge_base.parts import DESCRIPTION, MENTIONS, content, record, states_of
from tests.ranking.tables import table_matcher

FIRST = 40
"""Entities of the first indexing."""

PART = 5

Expected = dict[str, tuple[int, int]]
"""Order number and group of each entity by id."""


class Journal:
    """Lines that survive a kill: each is synced before anything else is done."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **line: object) -> None:
        with open(self.path, "a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def lines(self) -> list[dict]:
        if not self.path.exists():
            return []
        whole = [line for line in self.path.read_text().splitlines(keepends=True) if line.endswith("\n")]
        return [json.loads(line) for line in whole]


class History:
    """What a knowledge base must contain after the lines of a journal."""

    def __init__(self, lines: list[dict]) -> None:
        self.numbers: dict[str, int] = {}
        self.alive: Expected = {}
        self.indexed = False
        self.pending: dict | None = None
        for line in lines:
            if "begin" in line:
                assert self.pending is None, "the last change was not settled"
                self.pending = line
            elif "end" in line:
                if line["end"]:
                    self.apply(self.pending)
                self.pending = None
            elif "indexed" in line:
                self.indexed = True

    def apply(self, line: dict) -> None:
        for id, group in line.get("entities", {}).items():
            if line["begin"] == "delete":
                del self.alive[id]
            else:
                self.alive[id] = self.numbers.setdefault(id, len(self.numbers)), group


def padded(entities):
    """States of a size that takes a moment to write."""
    made = states_of(entities)["text"]
    return {"text": {**made, "pad": torch.ones(len(entities), 2000)}}


def entities_of(line: dict):
    return [record(id, group, **{f"field {group}": "x"}) for id, group in line["entities"].items()]


def found_in(kb: KnowledgeBase) -> Expected:
    return {id: (number, int(entity.fields["group"])) for id, (number, entity, _) in content(kb).items()}


def require_ranks(kb: KnowledgeBase, expected: Expected) -> None:
    """Compare the ranks of all entities with sorting the scores of the expected ones."""
    ids = sorted(expected, key=lambda id: expected[id][0])
    if not ids:
        return
    table = states_of([record(id, expected[id][1]) for id in ids])["text"]["column"].T
    golds = [[number % len(ids)] for number in range(MENTIONS)]
    order = torch.tensor([expected[id][0] for id in ids])
    mentions = {"text": {"row": torch.arange(MENTIONS)}}
    ranking = Ranker(5)(table_matcher({"text": None}), mentions, kb.index, order[torch.tensor(golds)])
    assert ranking.ranks["overall"].tolist() == reference.ranks_by_sorting(table, golds)
    best = table.argsort(dim=1, descending=True, stable=True)[:, :5]
    assert torch.equal(ranking.top_entities, order[best])
    assert torch.equal(ranking.top_scores["overall"], table.gather(1, best))


def settle(folder: Path, journal: Journal) -> History:
    """Check a knowledge base against its journal, whose last change may have happened or not."""
    history = History(journal.lines())
    if not history.indexed:
        return history
    kb = KnowledgeBase(folder, expects=DESCRIPTION)
    assert kb.verify() == []
    found = found_in(kb)
    if history.pending is not None:
        happened = found != history.alive
        if happened:
            history.apply(history.pending)
        journal.write(end=happened)
        history.pending = None
    assert found == history.alive
    assert len(kb) == len(found)
    require_ranks(kb, found)
    return history


def index(folder: Path, journal: Journal, history: History) -> KnowledgeBase:
    """The first indexing, which goes on where it was."""
    everything = [record(f"Q{n}", n, **{f"field {n % 7}": "x"}) for n in range(FIRST)]
    groups = {entity.id: int(entity.fields["group"]) for entity in everything}
    kb = KnowledgeBase.create(folder, DESCRIPTION)
    with kb.indexing() as indexing:
        missing = {entity.id for entity in indexing.missing(everything)}
        if history.pending is not None:
            happened = not missing & history.pending["entities"].keys()
            if happened:
                history.apply(history.pending)
            journal.write(end=happened)
        assert missing == groups.keys() - history.alive.keys(), "what was acknowledged is lost"
        for start in range(0, FIRST, PART):
            new = [entity for entity in everything[start : start + PART] if entity.id in missing]
            if new:
                line = {"begin": "add", "entities": {entity.id: groups[entity.id] for entity in new}}
                journal.write(**line)
                indexing.add(new, padded(new))
                indexing.flush()
                journal.write(end=True)
    journal.write(indexed=True)
    return KnowledgeBase(folder)


def work(folder: Path, seed: int, ready) -> None:
    """Check the knowledge base, report, and change it at random for ever."""
    torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
    journal, rng = Journal(folder.with_suffix(".journal")), random.Random(seed)
    history = settle(folder, journal)
    lance()
    ready()
    if not history.indexed:
        index(folder, journal, history)
        history = settle(folder, journal)
    kb = KnowledgeBase(folder)
    while True:
        change = rng.choice(["add", "add", "update", "delete", "delete", "compact"])
        if change == "compact":
            kb = kb.compact(keep_hours=rng.choice([0, 1]))
            continue
        ids = [f"Q{n}" for n in range(2 * FIRST)]
        rng.shuffle(ids)
        chosen = [id for id in ids if (id in history.alive) != (change == "add")][: rng.randint(1, 10)]
        if not chosen:
            continue
        line = {"begin": change, "entities": {id: rng.randrange(7) for id in chosen}}
        journal.write(**line)
        entities = entities_of(line)
        if change == "delete":
            kb = kb.delete(chosen)
        else:
            kb = (kb.add if change == "add" else kb.update)(entities, padded(entities))
        journal.write(end=True)
        history.apply(line)
