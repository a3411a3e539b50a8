"""`mimic-pl link` with several processes writes the file and the table that one writes, killed or not."""

import json
import os
import random
import signal
from collections import Counter
from functools import partial

import pytest

from mimic_pl.calibration import Calibration
from mimic_pl.errors import ConfigError, DataError, MachineError, StoreError
from mimic_pl.formats.link_writer import LinkWriter
from mimic_pl.linking import Linker
from mimic_pl.linking.candidates import CandidateSearch
from tests import tiny
from tests.launch import RunningCommand, free_port, needs_fork, run
from tests.linking.test_distributed_indexing import codes_of, launch, many

pytestmark = needs_fork

ENTITIES = 90
BATCH = 4
NIL_SCORE = 9.6
"""Above the first score of some mentions."""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A calibrated run, a knowledge base of which some entities are equal, and mentions of every kind."""
    folder = tmp_path_factory.mktemp("home")
    rng = random.Random(0)
    config = tiny.config(tiny.write_set(folder / "Tiny"), folder)
    config["trainer"] |= {"max_epochs": 1}
    image = {"class_path": "mimic_pl.units.GlobalCosine", "init_args": {"modality": "image", "centered": True}}
    config["model"]["init_args"]["units"]["image"] = image
    (folder / "config.json").write_text(json.dumps(config))
    run(["fit", "--config", "config.json"], folder)
    Calibration(0.1, NIL_SCORE, top_k=5).save(folder / "lightning_logs" / "version_0")

    pictures = sorted(str(path) for path in (folder / "Tiny" / "kb_image").iterdir())
    kinds = sorted(tiny.KINDS)
    entities = [
        {
            "id": f"E{n}",
            "name": rng.choice(tiny.NAMES),
            "attr": f"a {rng.choice(tiny.WORDS)}",
            "type": rng.choice(kinds),
        }
        for n in range(ENTITIES)
    ]
    for entity in entities[::2]:
        entity["image"] = rng.choice(pictures)
    (folder / "kb.jsonl").write_text("\n".join(map(json.dumps, entities)))
    run(["index", "kb.jsonl", "--model", "lightning_logs/version_0", "--out", "kb", "--device", "cpu"], folder)

    lines = [
        {"mention": rng.choice(tiny.NAMES), "sentence": f"the {rng.choice(tiny.WORDS)}", "image": rng.choice(pictures)}
        for _ in range(30)
    ]
    lines[1] = {"sentence": "no mention"}
    lines[5] |= {"entity_type": "river"}
    lines[6] |= {"candidates": ["E3", "E70", "E4", "E89"]}  # of several shards
    lines[8] |= {"filter": "name = 'nobody'"}
    lines[9] = {"sentence": "jaguar and amazon", "spans": [[0, 6], [11, 17]]}
    lines[10] |= {"candidates": ["E88"]}  # of the last one
    lines[11] |= {"image": "none.jpg"}
    lines[12] |= {"candidates": ["Q99"]}
    lines[13] |= {"filter": "colour = 1"}
    lines[17] |= {"image": "none.jpg"}
    lines[19] |= {"image": "nothing.jpg", "entity_type": "river"}
    for line in lines[20:24]:  # a whole batch
        line["filter"] = "colour = 1"
    (folder / "mentions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


def link(out, processes=1, *more):
    command = ["link", "mentions.jsonl", "--kb", "kb", "--out", out, "--batch_size", str(BATCH), *more]
    return [*command, *(["--device", "cpu"] if processes == 1 else many(processes))]


def start(arguments, folder, processes, before=None, name="log"):
    return RunningCommand(arguments, folder, processes, before, name)


def linked(home, out, processes, *more, before=None, code=0):
    """The content of the file, and the table, that a command writes."""
    command = start(link(out, processes, *more), home, processes, before, out)
    assert command.exit_codes() == [code] + [0] * (processes - 1), command.output()
    assert all("Links" not in log.read_text() for log in command.logs[1:])
    return (home / out).read_text(), table(command)


def table(command):
    return [line for line in command.logs[0].read_text().splitlines() if "│" in line]


@pytest.fixture(scope="module")
def expected(home):
    """What one process writes."""
    content, rows = linked(home, "one.jsonl", 1)
    found = [json.loads(line) for line in content.splitlines()]
    assert len(found) == 31 and sum(each["error"] is not None for each in found) == 7
    kinds = Counter(each["nil"] for each in found if each["error"] is None)
    assert kinds[True] > 1 and kinds[False], "some are NIL because of their score"
    scores = [[candidate["score"] for candidate in each["candidates"]] for each in found]
    assert any(len({*of_mention}) < len(of_mention) for of_mention in scores), "there are ties"
    assert any("image missing" in row and " 3 " in row for row in rows)
    return content, rows


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_links_and_table_are_those_of_one_process(home, expected, processes):
    assert linked(home, f"of-{processes}.jsonl", processes) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "code"),
    [
        (["--filter", "type = 'river'", "--top_k", "3"], 0),
        (["--filter", "id = 'E1'"], 0),
        (["--top_k", "200", "--strict"], DataError.exit_code),
        (["--certify"], 0),
    ],
    ids=["filter", "one entity", "all entities", "certify"],
)
def test_options(home, more, code):
    of_one, of_three = (linked(home, f"{n}.jsonl", n, *more, code=code) for n in (1, 3))
    assert of_one == of_three


@pytest.mark.slow
def test_there_are_fewer_mentions_than_processes(home):
    (home / "single.jsonl").write_text('{"mention": "jaguar"}')
    of_one, of_three = (
        start(["link", "single.jsonl", *link(f"single-{n}.jsonl", n)[2:]], home, n, name=f"single{n}-") for n in (1, 3)
    )
    assert of_one.exit_codes() == [0] and of_three.exit_codes() == [0, 0, 0], of_three.output()
    assert (home / "single-1.jsonl").read_text() == (home / "single-3.jsonl").read_text()


def states_that_are_not_finite():
    """Have three mentions get states that cannot be ranked."""
    encoded = CandidateSearch.encoded

    def with_nan(search, queries):
        states = encoded(search, queries)
        for row, query in enumerate(queries):
            if query.mention.mention == "mercury" and query.mention.image is not None:
                for state in states.values():
                    for tensor in state.values():
                        if tensor.is_floating_point():
                            tensor[row] = float("nan")
        return states

    CandidateSearch.encoded = with_nan


@pytest.mark.slow
def test_scores_that_are_not_finite_fail_their_mentions_only(home, expected):
    of_one, of_two = (linked(home, f"nan{n}.jsonl", n, before=states_that_are_not_finite) for n in (1, 2))
    assert of_one == of_two
    before, after = ([json.loads(line) for line in content.splitlines()] for content in (expected[0], of_two[0]))
    changed = [new for old, new in zip(before, after, strict=True) if old != new]
    assert len(changed) > 1 and all("score" in each["error"] and each["mention"] == "mercury" for each in changed)


def in_third_batch(rank, act):
    """Have the process of a rank do something in its third batch."""
    encoded, calls = CandidateSearch.encoded, 0

    def counted(search, queries):
        nonlocal calls
        calls += 1
        if calls == 3 and search.processes.rank == rank:
            act()
        return encoded(search, queries)

    CandidateSearch.encoded = counted


def die():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("rank", "then"), [(1, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 3), (1, 2)))]
)
def test_a_process_is_killed_and_any_number_goes_on(home, expected, rank, then):
    out = f"killed-{rank}-{then}.jsonl"
    killed = start(link(out, 2), home, 2, partial(in_third_batch, rank, die), f"{out}-killed")
    codes = killed.exit_codes()
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == MachineError.exit_code, killed.output()
    assert "Another process of this run died" in killed.logs[1 - rank].read_text()
    assert not (home / out).exists()

    again = start(link(out, then), home, then, None, out)
    assert again.exit_codes() == [0] * then, again.output()
    assert "linked earlier" in again.output()
    assert (home / out).read_text() == expected[0]


def fail():
    raise StoreError("of one process")


def fail_to_write(rank):
    """Have the first process fail when it writes the tenth link."""
    append = LinkWriter.append

    def append_or_fail(writer, record):
        if writer.written == 9:
            raise MachineError("of the file")
        append(writer, record)

    LinkWriter.append = append_or_fail


def have_another_model():
    """Have the second process another model."""
    if os.environ["LOCAL_RANK"] == "1":
        Linker.weights = "other"


def failing(home, name, error, said, *more, before=None):
    """A command of two processes that fails with one message."""
    command = start(link(f"{name}.jsonl", 2, *more), home, 2, before, name)
    assert command.exit_codes() == [error.exit_code] * 2, command.output()
    first, second = (log.read_text() for log in command.logs)
    assert first.count("error:") == 1 and said in first and "error:" not in second, command.output()
    assert not (home / f"{name}.jsonl").exists()


def test_an_error_of_the_second_process(home):
    failing(home, "second", StoreError, "of one process", before=partial(in_third_batch, 1, fail))


@pytest.mark.slow
def test_errors(home):
    failing(home, "writing", MachineError, "of the file", before=partial(fail_to_write, 0))
    failing(home, "filter", DataError, "colour", "--filter", "colour = 1")
    failing(home, "retriever", ConfigError, "searches in one process", "--retriever", "lance")
    failing(home, "model", StoreError, "different models, or different versions", before=have_another_model)
    (home / "nowhere").mkdir()
    failing(home, "nowhere/out", StoreError, "nowhere", "--kb", "nowhere")


def test_two_machines(home, expected):
    """Of one device each, which find each other by the environment."""
    arguments = [*link("machines.jsonl")[:-2], *many(1, nodes=2)]
    rendezvous = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    machines = [
        start(arguments, home, 1, partial(os.environ.update, rendezvous, NODE_RANK=str(n)), f"machine{n}-")
        for n in range(2)
    ]
    codes = [command.exit_codes() for command in machines]
    assert codes == [[0], [0]], "".join(command.output() for command in machines)
    assert ((home / "machines.jsonl").read_text(), table(machines[0])) == expected


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [[], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]])
def test_launchers(home, expected, launcher):
    """Lightning's own, and torchrun."""
    out = f"launched{len(launcher)}.jsonl"
    command = launch([*launcher, "-m", "mimic_pl", *link(out, 2)], home, f"{out}.log")
    assert codes_of([command], home) == [0], (home / f"{out}.log").read_text()
    assert (home / out).read_text() == expected[0]
