"""Two writers and five readers at once: every reader sees a whole version."""

from __future__ import annotations

import random
import time
import traceback

import pytest
import torch

from mimic_pl.errors import StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.ranking import Ranker
from mimic_pl.ranking.lance_dataset import lance
from tests.knowledge_base.parts import MENTIONS, add, content, created, import_lance, record, states_of, update
from tests.launch import FORK, in_own_process, needs_fork
from tests.ranking.tables import table_matcher

TEAM = 6
"""Entities that one writer always changes together."""


def teams(writer):
    return [[f"W{writer}T{team}M{member}" for member in range(TEAM)] for team in range(6)]


def write(folder, writer, changes):
    """Add, update and delete whole teams of equal groups."""
    kb, rng, alive = KnowledgeBase(folder, wait=120.0), random.Random(writer), set()
    for _ in range(changes):
        number = rng.randrange(6)
        ids, group = teams(writer)[number], rng.randrange(7)
        entities = [record(id, group, text=f"{group}" * 50) for id in ids]
        if number not in alive:
            kb = add(kb, *entities)
            alive.add(number)
        elif rng.random() < 0.5:
            kb = update(kb, *entities)
        else:
            kb = kb.delete(ids)
            alive.remove(number)
        if rng.random() < 0.05:
            kb = kb.compact(keep_hours=rng.choice([0, 1]))
    assert {id for id in content(KnowledgeBase(folder)) if id.startswith(f"W{writer}")} == {
        id for number in alive for id in teams(writer)[number]
    }


def read(folder, seed, written):
    """Open the newest version again and again until all is written; returns the number of versions seen."""
    rng, seen, removed = random.Random(seed), set(), 0
    while not (seen and written.is_set()):
        try:
            kb = KnowledgeBase(folder)
            for _ in range(rng.randint(1, 3)):
                found = content(kb)
                require_whole(kb, found)
                time.sleep(rng.uniform(0, 0.05))
                assert content(kb) == found, "a version does not change"
        except StoreError as error:  # compacted away between opening and reading
            assert "was removed by a compaction" in str(error) or "has no version" in str(error), error
            removed += 1
            continue
        seen.add(kb.version)
    return len(seen), removed


def require_whole(kb, found):
    assert "always" in found
    for ids in [*teams(0), *teams(1)]:
        groups = {found[id][1].fields["group"] for id in ids if id in found}
        assert len(groups) <= 1 and sum(id in found for id in ids) in (0, TEAM), "a torn change"
    ordered = sorted(found, key=lambda id: found[id][0])
    table = states_of([found[id][1] for id in ordered])["text"]["column"].T
    mentions = {"text": {"row": torch.arange(MENTIONS)}}
    top = Ranker(5)(table_matcher({"text": None}), mentions, kb.index).top_entities
    best = table.argsort(dim=1, descending=True, stable=True)[:, :5]
    assert torch.equal(top, torch.tensor([found[id][0] for id in ordered])[best])


def create_in_a_process(folder):
    def create():
        created(folder, record("always"))

    in_own_process(create)


def run_together(folder, changes):
    assert FORK is not None
    import_lance()
    create_in_a_process(folder)
    written = FORK.Event()
    processes = []
    for task, number, until in [*((write, n, changes) for n in range(2)), *((read, n, written) for n in range(5))]:
        receiver, sender = FORK.Pipe(duplex=False)

        def target(task=task, number=number, until=until, sender=sender):
            torch.set_num_threads(1)  # a fork has no copies of the threads of its parent
            try:
                lance()
                sender.send(task(folder, number, until))
            except BaseException:
                sender.send(traceback.format_exc())

        processes.append((FORK.Process(target=target), receiver))
        processes[-1][0].start()
        sender.close()
    results = [receiver.recv() for _, receiver in processes[:2]]
    written.set()
    results += [receiver.recv() for _, receiver in processes[2:]]
    for process, _ in processes:
        process.join()
    assert not [result for result in results if isinstance(result, str)], "\n".join(map(str, results))
    print(f"versions seen and found removed by each reader: {results[2:]}")


@needs_fork
@pytest.mark.own_process
@pytest.mark.parametrize("changes", [12, pytest.param(100, marks=pytest.mark.slow)])
def test_two_writers_and_five_readers(tmp_path, changes):
    run_together(tmp_path, changes)
