"""A third-party project with its own loss, unit and data, run through the command line."""

import json

import yaml

from tests import tiny
from tests.launch import needs_fork, run
from tests.results import read_jsonl

THEIR_MODEL = '''
import torch
from mimic_pl import MIMIC
from mimic_pl.units import Unit


class NameOverlap(Unit):
    """A unit with its own parameter and state."""

    def __init__(self, dims, width: int = 4):
        super().__init__(dims)
        self.down = torch.nn.Linear(dims.text, width)

    def mention(self, features):
        return {"down": self.down(features.text_global)}

    def entity(self, features):
        return {"down": self.down(features.text_global)}

    def score(self, mentions, entities):
        return -torch.cdist(mentions["down"], entities["down"])


class Model(MIMIC):
    """Adds a symmetric loss, from entities to mentions."""

    def __init__(self, *args, symmetric: float = 0.5, **kwargs):
        super().__init__(*args, **kwargs)
        self.symmetric = symmetric

    def compute_loss(self, inputs):
        total, terms = super().compute_loss(inputs)
        scores = inputs.square("overall")  # [mentions, mentions]: no column of a hard negative
        target = torch.arange(len(scores), device=scores.device)
        terms["symmetric"] = torch.nn.functional.cross_entropy(scores.T, target)
        return total + self.symmetric * terms["symmetric"], terms
'''

THEIR_DATA = '''
import csv
from pathlib import Path
from mimic_pl import MELDataModule
from mimic_pl.data import Entity, Mention


class Data(MELDataModule):
    """Entities are read from a CSV file."""

    def read_entities(self):
        with open(Path(self.root) / "entities.csv", newline="") as file:
            return [Entity(row["qid"], row["name"], {"attr": row["text"]}) for row in csv.DictReader(file)]
'''


@needs_fork
def test_subclasses_run_from_the_command_line(tmp_path):
    project = tmp_path / "theirs"
    project.mkdir()
    (project / "their_model.py").write_text(THEIR_MODEL)
    (project / "their_data.py").write_text(THEIR_DATA)
    root = tiny.write_set(project / "set")
    entities = json.loads((root / "kb_entity.json").read_text())
    rows = [f"{e['qid']},{e['entity_name']},{e['attr']}" for e in entities]
    (root / "entities.csv").write_text("\n".join(["qid,name,text", *rows]))
    (root / "kb_entity.json").unlink()
    (root / "qid2id.json").unlink()

    config = tiny.config(root, project)
    config["model"]["class_path"] = "their_model.Model"
    config["model"]["init_args"]["units"]["names"] = {
        "class_path": "their_model.NameOverlap",
        "init_args": {"width": 3},
    }
    model = {"init_args": config.pop("model")["init_args"]}
    data = {"init_args": config.pop("data")["init_args"]}
    (project / "config.yaml").write_text(yaml.safe_dump({**config, "model": model, "data": data}))

    arguments = ["fit", "--model", "their_model.Model", "--data", "their_data.Data", "--config", "config.yaml"]
    for step in ([*arguments, "--model.symmetric", "0.25"], ["test"]):
        run(step, project)
    results = project / "lightning_logs" / "version_0"
    assert yaml.safe_load((results / "config.yaml").read_text())["model"]["init_args"]["symmetric"] == 0.25
    metrics = json.loads((results / "metrics.json").read_text())
    assert "names" in json.dumps(metrics), "the third-party unit is reported, too"
    assert len(read_jsonl(results / "predictions.jsonl")) == tiny.SPLITS["test"]
