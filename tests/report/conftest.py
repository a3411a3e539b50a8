"""Run folders as fit and test write them, made by hand, and a real run on a malicious data set."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils.tensorboard import SummaryWriter

from mimic_pl.cli import main
from tests import tiny

SCRIPT_INJECTION = '<script>alert("x")</script>'
IMAGE_INJECTION = '"><img src=x onerror=alert(1)>'


def write_run(
    folder: Path,
    ranks: list[int | None],
    seed: int = 43,
    changes: dict[str, Any] | None = None,
    curve: dict[int, float] | None = None,
    scores: list[list[float]] | None = None,
    data: dict[str, Any] | None = None,
) -> Path:
    """Write a run folder with these overall ranks; the text unit ranks every gold second.

    Args:
        changes: Settings by dotted name.
        curve: Validation MRR by epoch, starting at 0.
        scores: Overall scores of the candidates of each mention.
        data: The data section of the configuration.
    """
    folder.mkdir(parents=True)
    config = tiny.config(Path("/data/Tiny"), folder.parent)
    config["seed_everything"] = seed
    config["data"] = data or config["data"]
    templates = {"mention_template": "{mention} [SEP] {sentence}", "entity_template": "{name} [SEP] {attr}"}
    config["model"]["init_args"]["processor"] = {"class_path": "mimic_pl.Processor", "init_args": templates}
    for name, value in (changes or {}).items():
        *parents, last = name.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    lines = []
    for number, rank in enumerate(ranks):
        own = scores[number] if scores else [2.0, 1.0]
        candidates = [{"qid": f"Q{i}", "name": f"e{i}", "scores": {"overall": s, "text": s}} for i, s in enumerate(own)]
        golds = [{"qid": f"Q{number}", "name": f"e{number}"}]
        lines.append(
            {"id": f"test-{number}", "mention": "m", "sentence": "m s", "golds": golds}
            | {"rank": {"overall": rank, "text": 2}, "candidates": candidates}
        )
    (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    overall = {
        "hits@1": sum(rank == 1 for rank in ranks) / len(ranks),
        "mrr": sum(1 / rank for rank in ranks if rank) / len(ranks),
        "mr": sum(rank or 12 for rank in ranks) / len(ranks),
    }
    summary = {
        "checkpoint": str(folder / "checkpoints" / "epoch=3-mrr=0.5000.ckpt"),
        "data": "MELDataModule",
        "mentions": len(ranks),
        "mentions_without_gold_in_kb": ranks.count(None),
        "entities": 12,
        "metrics": {"overall": overall, "text": {"hits@1": 0.0, "mrr": 0.5, "mr": 2.0}},
    }
    (folder / "metrics.json").write_text(json.dumps(summary))
    if curve:
        write_curve(folder, curve)
    return folder


def write_curve(folder: Path, curve: dict[int, float], tag: str = "val/mrr") -> None:
    """Write a TensorBoard event file with a validation metric by epoch, later than the others in the folder."""
    number = len(list(folder.glob("events*")))
    writer = SummaryWriter(str(folder), filename_suffix=".new")
    for epoch, value in curve.items():
        writer.add_scalar(tag, value, 10 * epoch)
        writer.add_scalar("epoch", epoch, 10 * epoch)
    writer.close()
    (written,) = folder.glob("events*.new")
    written.rename(folder / f"events.out.tfevents.{number:010}")  # files are read in the order of their names


@pytest.fixture(scope="session")
def malicious_run(tmp_path_factory) -> Path:
    """A trained and tested run on a data set whose texts are HTML and scripts. Read-only: the session shares it."""
    home = tmp_path_factory.mktemp("harm")
    root = tiny.write_set(home / "Tiny")
    entities = json.loads((root / "kb_entity.json").read_text())
    for entity in entities:
        entity["entity_name"] += SCRIPT_INJECTION
        entity["attr"] += IMAGE_INJECTION
    (root / "kb_entity.json").write_text(json.dumps(entities))
    mentions = json.loads((root / "Tiny_test.json").read_text())
    for mention in mentions:
        mention["id"] += SCRIPT_INJECTION
        mention["sentence"] += f" {SCRIPT_INJECTION} {IMAGE_INJECTION}"
    mentions[0]["mentions"] += SCRIPT_INJECTION  # so that its sentence does not contain it
    (root / "Tiny_test.json").write_text(json.dumps(mentions))
    config = tiny.config(root, home)
    config["trainer"]["max_epochs"] = 1
    (home / "tiny.yaml").write_text(yaml.safe_dump(config))
    before = Path.cwd()
    os.chdir(home)
    try:
        main(["fit", "--config", "tiny.yaml"])
        main(["test"])
    finally:
        os.chdir(before)
    return home / "lightning_logs" / "version_0"
