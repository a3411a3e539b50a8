"""Evaluation, prediction and indexing with one, two and three processes (gloo) give identical results."""

from __future__ import annotations

import json
import re
import shutil
from itertools import product
from pathlib import Path

import pytest
import yaml

from tests import tiny
from tests.launch import RunningCommand, needs_fork, run
from tests.results import read_jsonl

pytestmark = needs_fork

MASKED = ["--model.units.text.mask_padding", "true"]  # so that texts are encoded by length
CASES = {
    "in_order": ["test", "--data.eval_batch_size", "4", "--data.entity_batch_size", "5"],
    "by_length": ["test", "--data.eval_batch_size", "2", "--data.entity_batch_size", "3", *MASKED],
    "eight_bits": [
        "test",
        "--data.eval_batch_size",
        "5",
        "--model.index.dtype",
        "int8",
        "--model.ranker.top_k",
        "13",
    ],
    # Two batches of entities: one of three processes has none.
    "on_disk": ["test", "--data.entity_batch_size", "7", "--model.index.storage", "disk"],
    "links": ["predict", "--data.eval_batch_size", "3", "--data.entity_batch_size", "4"],
    # States of the top entities come from the process that holds them.
    "reranked": ["test", "--data.eval_batch_size", "3", "--model.matcher", "tests.distributed.reranking.Central"],
}


class Evaluated:
    """Run folders by case and number of processes, evaluated on first access: 13 entities, 11 mentions."""

    def __init__(self, folder: Path) -> None:
        root = tiny.write_set(folder / "set", splits={"train": 20, "dev": 7, "test": 11})
        entities = json.loads((root / "kb_entity.json").read_text())
        entities.append({**entities[0], "id": 12, "qid": "Q12", "entity_name": "sahara"})
        (root / "kb_entity.json").write_text(json.dumps(entities))
        (root / "qid2id.json").unlink()
        config = tiny.config(root, folder)
        config["trainer"] |= {"max_epochs": 1}
        # A unit that depends on totals of the whole knowledge base.
        image = {"class_path": "mimic_pl.units.GlobalCosine", "init_args": {"modality": "image", "centered": True}}
        config["model"]["init_args"]["units"]["image"] = image
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        run(["fit", "--config", "config.yaml"], folder)
        self.folder = folder

    def __getitem__(self, key: tuple[str, int]) -> Path:
        case, count = key
        evaluated = self.folder / "runs" / f"{case}-{count}"
        if not evaluated.exists():
            shutil.copytree(self.folder / "lightning_logs" / "version_0", evaluated)
            command, *options = CASES[case]
            run([command, "--run", str(evaluated), "--trainer.devices", str(count), *options], self.folder, count)
        return evaluated


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return Evaluated(tmp_path_factory.mktemp("evaluation"))


def test_one_process_reports_the_failed_images_of_all(results, tmp_path):
    """And the size of the index, although one process may hold none of it."""
    run = shutil.copytree(results["in_order", 1], tmp_path / "run")
    root = shutil.copytree(results["in_order", 1].parents[1] / "set", tmp_path / "set")
    broken = [*(root / "mention_images").glob("test[0268].jpg"), root / "kb_image" / "Q3_0.jpg"]
    for image in broken:
        image.write_bytes(b"none")
    options = ["--data.root", str(root), "--data.eval_batch_size", "2", "--trainer.devices", "2"]
    test = RunningCommand(["test", "--run", str(run), *options], tmp_path, 2)
    assert test.exit_codes() == [0, 0], test.output()
    first, second = (log.read_text() for log in test.logs)
    assert len(broken) == 5 and "5 images could not be used (5 unreadable)" in first
    assert "could not be used" not in second
    assert re.search(r"Index of 13 entities, float32 on device: \d{2,} bytes each", first)


@pytest.mark.parametrize(
    ("case", "count"),
    [
        ("in_order", 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("in_order", 3), ("on_disk", 2), ("on_disk", 3))),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product(("by_length", "eight_bits", "reranked"), (2, 3))
        ),
    ],
)
def test_metrics_ranks_and_predictions_are_those_of_one_process(results, case, count):
    alone, together = results[case, 1], results[case, count]
    lines = (alone / "predictions.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == [f"test-{number}" for number in range(11)]
    assert (together / "predictions.jsonl").read_text().splitlines() == lines
    metrics, metrics_of_one = (json.loads((run / "metrics.json").read_text()) for run in (together, alone))
    del metrics["checkpoint"], metrics_of_one["checkpoint"]
    assert metrics == metrics_of_one


def test_candidates_and_their_golds_are_reranked(results):
    reranked, plain = (read_jsonl(results[case, 1] / "predictions.jsonl") for case in ("reranked", "in_order"))
    moved = 0
    for new, old in zip(reranked, plain, strict=True):
        places, places_before = ([c["qid"] for c in line["candidates"]] for line in (new, old))
        assert sorted(places) == sorted(places_before)
        moved += places != places_before
        gold = new["golds"][0]["qid"]
        assert new["rank"]["overall"] == (places.index(gold) + 1 if gold in places else old["rank"]["overall"])
        assert new["rank"]["vision"] == old["rank"]["vision"]
    assert moved


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_links_are_those_of_one_process(results, count):
    links = (results["links", count] / "links.jsonl").read_bytes()
    assert links == (results["links", 1] / "links.jsonl").read_bytes()
    assert len(links.splitlines()) == 11


@pytest.mark.parametrize(("count", "parts"), [(1, 1), pytest.param(2, 2, marks=pytest.mark.slow), (3, 2)])
def test_each_process_writes_its_shard_of_an_index(results, count, parts):
    """And a single version of the dataset is left."""
    folder = results["on_disk", count] / "index" / "entities"
    assert len(list((folder / "data").glob("*.lance"))) == parts
    assert len(list((folder / "_versions").glob("*.manifest"))) == 1


@pytest.mark.slow
def test_any_number_of_processes_reads_an_index(results, tmp_path):
    written = results["on_disk", 2]
    expected = (written / "predictions.jsonl").read_bytes()
    before = {path: path.stat().st_mtime_ns for path in written.glob("index/**/*") if path.suffix != ".lock"}
    for count in (1, 3):
        processes = ["--trainer.devices", str(count)]
        run(["test", "--run", str(written), *processes, *CASES["on_disk"][1:]], tmp_path, count)
        assert (written / "predictions.jsonl").read_bytes() == expected
        assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing was rewritten"
