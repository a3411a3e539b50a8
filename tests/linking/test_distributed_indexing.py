"""`mimic-pl index` with several processes builds the knowledge base that one builds, killed or not."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from mimic_pl.errors import DataError, MachineError, StoreError
from mimic_pl.knowledge_base import KnowledgeBase
from mimic_pl.knowledge_base.distributed_indexing import DistributedIndexing
from mimic_pl.linking import distributed_indexing, knowledge_base_changes
from mimic_pl.ranking.lance_dataset import open_dataset
from tests import tiny
from tests.launch import RunningCommand, environment, free_port, in_own_process, needs_fork, run

pytestmark = needs_fork

ENTITIES = 150


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A run whose units need statistics of the whole knowledge base: document frequencies, and the mean image."""
    folder = tmp_path_factory.mktemp("model")
    config = tiny.config(tiny.write_set(folder / "Tiny"), folder)
    config["trainer"] |= {"max_epochs": 1}
    own = config["model"]["init_args"]
    lexicon = {"class_path": "mimic_pl.processor.BM25Lexicon"}
    arguments = {"image_policy": "error", "features": {"lexical": lexicon}}
    own["processor"] = {"class_path": "mimic_pl.Processor", "init_args": arguments}
    own["units"]["lexical"] = {"class_path": "mimic_pl.units.Lexical"}
    centered = {"modality": "image", "centered": True}
    own["units"]["image"] = {"class_path": "mimic_pl.units.GlobalCosine", "init_args": centered}
    (folder / "config.json").write_text(json.dumps(config))
    run(["fit", "--config", "config.json"], folder)
    return folder / "lightning_logs" / "version_0"


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "name", "attr", "image", "born"])
        writer.writerows(rows)


@pytest.fixture(scope="module")
def rows(model):
    rng = random.Random(0)
    pictures = sorted((model.parents[1] / "Tiny" / "kb_image").iterdir())
    return [
        [f"E{n}", rng.choice(tiny.NAMES), f"a {rng.choice(tiny.WORDS)}", rng.choice(pictures), "1900" if n % 7 else ""]
        for n in range(ENTITIES)
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("shared")
    write(folder / "kb.csv", rows)
    return folder


def index(model, out, processes=1, kb="kb.csv"):
    command = ["index", kb, "--model", str(model), "--out", out, "--batch_size", "4"]
    return [*command, *(["--device", "cpu"] if processes == 1 else many(processes))]


def many(devices, nodes=1):
    return ["--accelerator", "cpu", "--devices", str(devices), "--num_nodes", str(nodes)]


def small_rounds():
    """Several rounds although there are few entities."""
    distributed_indexing.AT_ONCE = knowledge_base_changes.AT_ONCE = 16


def start(arguments, folder, processes, before=small_rounds, name="log"):
    return RunningCommand(arguments, folder, processes, before, name)


def finish(arguments, folder, processes):
    command = start(arguments, folder, processes)
    assert command.exit_codes() == [0] * processes, command.output()


def read(folder):
    """All rows of a knowledge base, in their order on disk, its statistics, and what is wrong with it."""
    kb = KnowledgeBase(folder)
    names = ("processor", "units", "drift")
    statistics = {name: kb.statistics(name) for name in names}
    plain = {
        name: {key: getattr(value, "tolist", lambda value=value: value)() for key, value in found.items()}
        for name, found in statistics.items()
        if found is not None
    }
    return open_dataset(folder).dataset.to_table().to_pylist(), plain, kb.verify()


def written(folder):
    """Ids on disk of a knowledge base that is unfinished."""
    try:
        KnowledgeBase(folder)
    except StoreError as error:
        assert "is unfinished" in str(error)
    else:
        raise AssertionError("it can be opened")
    return open_dataset(folder).dataset.to_table(columns=["id"]).column("id").to_pylist()


@pytest.fixture(scope="module")
def expected(model, shared):
    """What one process builds."""
    finish(index(model, "one"), shared, 1)
    found, statistics, problems = in_own_process(read, shared / "one")
    assert [row["id"] for row in found] == [f"E{n}" for n in range(ENTITIES)] and problems == []
    assert {*statistics} == {"processor", "units"}
    return found, statistics, problems


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_the_knowledge_base_is_that_of_one_process(model, shared, expected, processes):
    """Rows, order numbers, states, checksums and statistics, bit by bit; and each process has written its share."""
    out = f"of-{processes}"
    finish(index(model, out, processes), shared, processes)
    assert in_own_process(read, shared / out) == expected
    assert len(list((shared / out / "_versions").glob("*.manifest"))) <= 2, "old versions are removed"


def record_encoded(file):
    """Note the ids of the entities that this process encodes."""
    small_rounds()
    encoded = knowledge_base_changes.KnowledgeBaseWriter._encoded

    def noted(writer, entities, processor, bar):
        with file.open("a") as log:
            log.writelines(f"{entity.id}\n" for entity in entities)
        return encoded(writer, entities, processor, bar)

    knowledge_base_changes.KnowledgeBaseWriter._encoded = noted


def kill_in_the_third_round(rank, when):
    """Have the process of a rank killed in its third round, before or after it has written its rows."""
    small_rounds()
    of_class = DistributedIndexing.write
    calls = 0

    def write_or_die(indexing, entities, states):
        nonlocal calls
        calls += 1
        die = calls == 3 and indexing.processes.rank == rank
        if die and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        count = of_class(indexing, entities, states)
        if die:
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    DistributedIndexing.write = write_or_die


@pytest.mark.parametrize(
    ("rank", "when", "then"),
    [
        (1, "before", 1),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((1, "after", 2), (0, "before", 2), (0, "after", 3))),
    ],
)
def test_a_process_is_killed_and_any_number_goes_on(model, rows, expected, tmp_path, rank, when, then):
    write(tmp_path / "kb.csv", rows)
    killed = start(index(model, "kb", 2), tmp_path, 2, partial(kill_in_the_third_round, rank, when))
    codes = killed.exit_codes()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == MachineError.exit_code, killed.output()
    assert "Another process of this run died" in killed.logs[1 - rank].read_text()
    before = in_own_process(written, tmp_path / "kb")
    rounds = 3 if (rank, when) == (1, "after") else 2  # the first process commits what the other one has written
    assert before == [f"E{n}" for n in range(rounds * 2 * 16)]

    note = partial(record_encoded, tmp_path / "encoded")
    again = start(index(model, "kb", then), tmp_path, then, note, "again")
    assert again.exit_codes() == [0] * then, again.output()
    assert sorted((tmp_path / "encoded").read_text().split()) == sorted({row[0] for row in rows} - {*before})
    assert in_own_process(read, tmp_path / "kb") == expected


@pytest.mark.slow
def test_the_file_changes_after_a_kill(model, rows, tmp_path):
    """What is written is found wherever it is now, and keeps its order number."""
    write(tmp_path / "kb.csv", rows)
    start(index(model, "kb", 2), tmp_path, 2, partial(kill_in_the_third_round, 0, "after")).exit_codes()
    write(tmp_path / "kb.csv", reversed(rows))
    note = partial(record_encoded, tmp_path / "encoded")
    again = start(index(model, "kb", 2), tmp_path, 2, note, "again")
    assert again.exit_codes() == [0, 0], again.output()
    assert sorted((tmp_path / "encoded").read_text().split()) == sorted(row[0] for row in rows[64:])
    found, _, problems = in_own_process(read, tmp_path / "kb")
    expected = [*rows[:64], *reversed(rows[64:])]
    assert [(row["#order"], row["id"]) for row in found] == [(n, row[0]) for n, row in enumerate(expected)]
    assert problems == []


@pytest.mark.slow
def test_all_processes_are_killed_at_random_moments(model, rows, expected, tmp_path):
    rng = random.Random(0)
    write(tmp_path / "kb.csv", rows)
    begun = time.monotonic()
    finish(index(model, "uninterrupted", 2), tmp_path, 2)
    seconds, kills = time.monotonic() - begun, 0
    while True:
        processes = rng.choice([2, 3])
        command = start(index(model, "kb", processes), tmp_path, processes)
        time.sleep(rng.uniform(0, seconds) if kills else seconds / 2)
        command.send(signal.SIGKILL, range(processes))
        if command.exit_codes() == [0] * processes:
            break
        kills += 1
        seconds *= 1.2
    assert kills
    assert in_own_process(read, tmp_path / "kb") == expected


def failing(model, rows, folder, error, *said):
    """Index with two processes, which fail with one message, and leave nothing that can be opened."""
    write(folder / "kb.csv", rows)
    command = start(index(model, "kb", 2), folder, 2)
    assert command.exit_codes() == [error.exit_code] * 2, command.output()
    first, second = (log.read_text() for log in command.logs)
    assert first.count("error:") == 1 and "error:" not in second, command.output()
    for text in said:
        assert text in first, command.output()


def opened(folder):
    try:
        KnowledgeBase(folder)
    except StoreError:
        return False
    return True


@pytest.mark.parametrize(("one", "other"), [(3, 20), pytest.param(3, 100, marks=pytest.mark.slow)])
def test_an_id_is_given_twice_in_shares_of_two_processes(model, rows, tmp_path, one, other):
    """In one round, or in two."""
    twice = [*rows]
    twice[other] = [f"E{one}", *rows[other][1:]]
    failing(model, twice, tmp_path, DataError, f"E{one}")
    assert not in_own_process(opened, tmp_path / "kb")
    command = start(index(model, "kb", 2), tmp_path, 2)
    assert command.exit_codes() == [DataError.exit_code] * 2, "nor the second time"
    assert not in_own_process(opened, tmp_path / "kb")


@pytest.mark.slow
def test_the_same_record_is_given_twice(model, rows, tmp_path):
    """It is not an entity that an earlier run has written."""
    twice = [*rows]
    twice[100] = rows[3]
    failing(model, twice, tmp_path, DataError, "E3")
    failing(model, twice, tmp_path, DataError, "E3")
    assert not in_own_process(opened, tmp_path / "kb")


def test_an_image_of_the_second_process_is_missing(model, rows, tmp_path):
    """The error of one process ends both; when the image is there, the same command goes on."""
    missing = [*rows]
    missing[70] = [*rows[70][:3], tmp_path / "none.png", *rows[70][4:]]
    failing(model, missing, tmp_path, DataError, "none.png")
    assert len(in_own_process(written, tmp_path / "kb")) == 2 * 2 * 16


@pytest.mark.slow
def test_a_record_is_malformed(model, rows, tmp_path):
    failing(model, [*rows, ["", "no id", "", "", ""]], tmp_path, DataError, "line")
    assert not in_own_process(opened, tmp_path / "kb")


@pytest.mark.slow
def test_entities_are_added(model, shared, rows, tmp_path):
    """In the folder of a finished knowledge base, as by one process."""
    write(tmp_path / "some.csv", rows[10:60])
    write(tmp_path / "kb.csv", rows)
    for processes in (1, 2):
        finish(index(model, f"kb{processes}", kb="some.csv"), tmp_path, 1)
        finish(index(model, f"kb{processes}", processes), tmp_path, processes)
    of_one, of_two = (in_own_process(read, tmp_path / f"kb{processes}") for processes in (1, 2))
    assert of_two == of_one and len(of_one[0]) == ENTITIES


@pytest.mark.slow
def test_entities_are_added_after_all_others_were_deleted(model, rows, tmp_path):
    write(tmp_path / "kb.csv", rows[:40])
    for processes in (1, 2):
        finish(index(model, f"kb{processes}"), tmp_path, 1)
        finish(["kb", "delete", f"kb{processes}", *(row[0] for row in rows[:40])], tmp_path, 1)
        finish(index(model, f"kb{processes}", processes), tmp_path, processes)
    of_one, of_two = (in_own_process(read, tmp_path / f"kb{processes}") for processes in (1, 2))
    assert of_two == of_one and len(of_one[0]) == 40


def launch(arguments, folder, log, **more):
    with (folder / log).open("w") as file:
        command = [sys.executable, *arguments]
        return subprocess.Popen(command, cwd=folder, env=environment() | more, stdout=file, stderr=file)


def codes_of(processes, folder):
    try:
        return [process.wait(300) for process in processes]
    finally:
        for process in processes:
            process.kill()


@pytest.mark.slow
def test_lightning_launches_the_processes(model, shared, expected):
    command = launch(["-m", "mimic_pl", *index(model, "launched", 2)], shared, "launched.log")
    assert codes_of([command], shared) == [0], (shared / "launched.log").read_text()
    assert in_own_process(read, shared / "launched") == expected


@pytest.mark.slow
def test_an_error_of_a_launched_process(model, rows, tmp_path):
    """Lightning's launcher does not kill the first process before it has said what is wrong."""
    missing = [*rows[:-1], [*rows[-1][:3], "none.png", *rows[-1][4:]]]
    write(tmp_path / "kb.csv", missing)
    command = launch(["-m", "mimic_pl", *index(model, "kb", 2)], tmp_path, "log")
    assert codes_of([command], tmp_path) == [DataError.exit_code], (tmp_path / "log").read_text()
    assert (tmp_path / "log").read_text().count("error:") == 1 and "none.png" in (tmp_path / "log").read_text()


@pytest.mark.slow
def test_torchrun(model, shared, expected):
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mimic_pl"]
    command = launch([*torchrun, *index(model, "torchrun", 2)], shared, "torchrun.log")
    assert codes_of([command], shared) == [0], (shared / "torchrun.log").read_text()
    assert in_own_process(read, shared / "torchrun") == expected


@pytest.mark.slow
def test_torchrun_with_a_command_of_another_number_of_processes(model, shared):
    """Each would think that it is alone."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mimic_pl"]
    command = launch([*torchrun, *index(model, "alone")[:-2]], shared, "alone.log")
    assert codes_of([command], shared) != [0]
    assert "does not match the world size (2)" in (shared / "alone.log").read_text()
    assert not (shared / "alone").exists()


def test_two_machines(model, shared, expected):
    """Of one device each, which find each other by the environment."""
    arguments = [*index(model, "machines")[:-2], *many(1, nodes=2)]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}

    def machine(number):
        small_rounds()
        os.environ.update(rendezvous, NODE_RANK=str(number))

    machines = [start(arguments, shared, 1, partial(machine, n), f"machine{n}-") for n in range(2)]
    codes = [command.exit_codes() for command in machines]
    assert codes == [[0], [0]], "".join(command.output() for command in machines)
    assert in_own_process(read, shared / "machines") == expected
