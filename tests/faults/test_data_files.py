"""Data sets of extreme sizes."""

from __future__ import annotations

import json
import resource
import shutil

import torch

from mimic_pl.data.reader import read_mentions
from mimic_pl.encoders import CLIPEncoder
from tests import tiny
from tests.faults.catalogue import check_command_error


def test_a_huge_sentence(tmp_path):
    sentence = "the jaguar runs in the forest " * 3_400_000
    row = {"id": 1, "mentions": "jaguar", "sentence": sentence, "answer": "Q0", "imgPath": "x.jpg"}
    path = tmp_path / "mentions.json"
    path.write_text(json.dumps([row, {**row, "sentence": sentence[:300]}]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    huge, short = (mention.sentence for mention in read_mentions(path))
    assert huge == sentence and len(huge) > 100_000_000
    tokenizer = CLIPEncoder(**tiny.ENCODER).build_tokenizer()
    ids, mask = tokenizer([huge, short])
    assert torch.equal(ids[0], ids[1]) and mask.all()
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 2_000_000  # kB; the tokenizer alone would take sixty times the text


def test_an_empty_knowledge_base(command, trained, tmp_path):
    root = shutil.copytree(trained.root, tmp_path / "set")
    (root / "kb_entity.json").write_text("[]")
    (root / "qid2id.json").write_text("{}")
    code, _, err = command("fit", "--config", str(trained.config), "--data.root", str(root), folder=tmp_path)
    check_command_error("test_an_empty_knowledge_base", code, err)


def test_one_entity_and_batches_of_one(command, trained, tmp_path):
    root = shutil.copytree(trained.root, tmp_path / "set")
    (entity,) = json.loads((root / "kb_entity.json").read_text())[:1]
    (root / "kb_entity.json").write_text(json.dumps([entity]))
    (root / "qid2id.json").write_text(json.dumps({entity["qid"]: 0}))
    for split in ("train", "dev", "test"):
        rows = json.loads((root / f"Tiny_{split}.json").read_text())[:2]
        (root / f"Tiny_{split}.json").write_text(json.dumps([{**row, "answer": entity["qid"]} for row in rows]))
    sizes = ["--data.batch_size", "1", "--data.eval_batch_size", "1", "--data.entity_batch_size", "1"]
    options = ["--config", str(trained.config), "--data.root", str(root), "--trainer.default_root_dir", str(tmp_path)]
    sizes += ["--trainer.max_epochs", "1"]
    code, _, err = command("fit", *options, *sizes, folder=tmp_path)
    assert code == 0, err
    code, _, err = command("test", folder=tmp_path)
    assert code == 0, err
    metrics = json.loads((tmp_path / "lightning_logs/version_0/metrics.json").read_text())
    assert metrics["metrics"]["overall"]["mrr"] == 1.0 and metrics["mentions"] == 2
