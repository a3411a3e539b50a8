"""Data sets of extreme sizes, and files that are none."""

from __future__ import annotations

import csv
import json
import os
import resource
import shutil
import threading

import pytest
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


def without_images(trained, root):
    """A copy of the data without the images of its entities."""
    shutil.copytree(trained.root, root)
    shutil.rmtree(root / "kb_image")
    return root


def test_no_image_of_the_entities_exists(command, trained, tmp_path):
    root = without_images(trained, tmp_path / "set")
    options = ["--config", str(trained.config), "--data.root", str(root), "--trainer.fast_dev_run", "true"]
    code, _, err = command("fit", *options, folder=tmp_path)
    message = check_command_error("test_no_image_of_the_entities_exists", code, err)
    for advice in (
        ["--data.entity_image_folder", str(trained.root / "kb_image")],
        ["--data.entity_image_folder", "null"],
    ):
        assert advice[0] in message
        code, _, err = command("fit", *options, *advice, folder=tmp_path)
        assert code == 0, err


def test_a_device_as_a_file_of_mentions(command, trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    code, _, err = command("predict", "--data.predict_file", "/dev/zero", folder=tmp_path)
    check_command_error("test_a_device_as_a_file_of_mentions", code, err)


def test_mentions_from_a_pipe_and_from_other_formats(command, trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    rows = [{**row, "imgPath": ""} for row in json.loads((trained.root / "Tiny_test.json").read_text())]
    lines = "".join(f"{json.dumps(row)}\n" for row in rows)
    with (tmp_path / "mentions.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    (tmp_path / "mentions.json").write_text(json.dumps(rows))
    os.mkfifo(tmp_path / "pipe")
    links = []
    for name in ("mentions.json", "mentions.csv", "pipe"):
        writer = threading.Thread(target=(tmp_path / "pipe").write_text, args=[lines])
        if name == "pipe":
            writer.start()
        code, _, err = command("predict", "--data.predict_file", str(tmp_path / name), folder=tmp_path)
        assert code == 0, err
        links.append((run / "links.jsonl").read_text())
    writer.join()
    assert links[0] == links[1] == links[2] and len(links[0].splitlines()) == len(rows)


def test_two_megabytes_in_a_value(command, trained, tmp_path):
    shutil.copytree(trained.run, tmp_path / "lightning_logs" / "version_0")
    row = {"id": "7", "mentions": {"x": "\x1b[2J" + "x" * 2_000_000}, "sentence": "s"}
    (tmp_path / "mentions.json").write_text(json.dumps([row]))
    code, _, err = command("predict", "--data.predict_file", str(tmp_path / "mentions.json"), folder=tmp_path)
    message = check_command_error("test_two_megabytes_in_a_value", code, err)
    assert len(message) < 500 and "\x1b" not in message


@pytest.mark.parametrize("command_name", ["fit", "doctor"])
@pytest.mark.parametrize("kind", ["anchors", "merge keys", "itself", "depth", "size"])
def test_a_configuration_that_expands_without_bound(command, tmp_path, command_name, kind):
    levels = range(1, 12)
    text = {
        "anchors": "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in levels),
        "merge keys": "a0: &a0 {x: 1}\n"
        + "".join(f"a{n}: &a{n} {{<<: [{', '.join([f'*a{n - 1}'] * 10)}]}}\n" for n in levels),
        "itself": "a: &a [*a]\n",
        "depth": f"a: {'[' * 5000}{']' * 5000}\n",
        "size": "",
    }[kind]
    (tmp_path / "x.yaml").write_text(text)
    if kind == "size":
        os.truncate(tmp_path / "x.yaml", 10 << 30)  # takes no space
    code, _, err = command(command_name, "--config", "x.yaml", folder=tmp_path)
    message = check_command_error("test_a_configuration_that_expands_without_bound", code, err)
    assert len(message) < 300
