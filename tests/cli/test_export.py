"""``mimic-pl export``: a run's model and its results in a folder."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from mimic_pl import MIMIC, load_run
from mimic_pl.cli import main
from mimic_pl.errors import CheckpointError, ConfigError, DataError
from mimic_pl.evaluated_run import open_finished
from mimic_pl.hub import export_run
from mimic_pl.model_folder.manifest import read_manifest
from tests.results import read_jsonl


@pytest.fixture(scope="module")
def tested(trained, tmp_path_factory):
    """A tested copy of the run of two epochs. Read-only."""
    home = shutil.copytree(trained.home, tmp_path_factory.mktemp("tested") / "home")
    before = Path.cwd()
    os.chdir(home)
    try:
        main(["test", "--run", "lightning_logs/version_0"])
    finally:
        os.chdir(before)
    return home / "lightning_logs" / "version_0"


@pytest.fixture
def run(tested, tmp_path):
    return shutil.copytree(tested, tmp_path / "version_0")


def test_the_command_writes_a_folder_that_is_all_one_needs(command, run, tmp_path, trained):
    model, data = load_run(run)
    data.setup("test")
    mentions, entities = list(data.mentions["test"]), list(data.entities)
    code, out, err = command("export", str(run), str(tmp_path / "model"), "--license", "mit", folder=tmp_path)
    assert (code, err) == (0, "")
    assert re.search(r"model\.safetensors +\d+\.\d kB", out) and "README.md" in out
    shutil.rmtree(run)
    again = MIMIC.from_pretrained(tmp_path / "model")
    assert all(torch.equal(own, again.state_dict()[name]) for name, own in model.state_dict().items())
    # The model, its processor alone, ranks as the run did: names of pictures are files of the data's folder.
    again.processor.mention_images, again.processor.entity_images = (
        model.processor.mention_images,
        model.processor.entity_images,
    )
    ranked = [m.score(m.encode_mentions(mentions), m.encode_entities(entities)) for m in (model, again)]
    assert all(torch.equal(scores, ranked[1][name]) for name, scores in ranked[0].items())


def test_the_card_shows_the_runs_results(run, tmp_path):
    folder = export_run(run, tmp_path / "model", license="cc-by-4.0", name="tiny model")
    card = ModelCard.load(folder / "README.md")
    card.data.to_dict()
    assert card.data.license == "cc-by-4.0" and "entity-linking" in card.data.tags
    metrics = json.loads((run / "metrics.json").read_text())["metrics"]["overall"]
    assert {own.metric_type: own.metric_value for own in card.data.eval_results} == {
        name: metrics[name] for name in ("hits@1", "hits@3", "hits@5", "mrr", "mr")
    }
    text = card.text
    assert "tested on Tiny." in text and card.data.eval_results[0].dataset_name == "Tiny"
    assert "9 test mentions against 12 entities" in text and "with seed 43" in text
    assert re.search("after [12] of 2 epochs", text)
    assert re.search(r"Training took (less than a second|\d+ (min|s))", text)
    row = next(line for line in text.splitlines() if line.startswith("| **tiny model**"))
    hits = [line["rank"]["overall"] == 1 for line in read_jsonl(run / "predictions.jsonl")]
    # An independent bootstrap, with another generator, gives the same interval up to its noise.
    generator = np.random.default_rng(5)
    means = [np.mean(generator.choice(hits, len(hits))) for _ in range(4000)]
    low, high = (float(value) for value in re.findall(r"\(([\d.]+) to ([\d.]+)\)", row)[0])
    assert f"| {100 * metrics['hits@1']:.1f} (" in row
    assert np.allclose([low, high], 100 * np.percentile(means, [2.5, 97.5]), atol=100 / 9 + 0.1)
    assert str(run.parent) not in text and not re.search(r"\{\{|\}\}|None|nan", text)


def test_the_code_in_the_card_runs(run, tmp_path):
    folder = export_run(run, tmp_path / "model")
    (block,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    scope: dict = {}
    exec(block.replace("PATH_OR_NAME", str(folder)), scope)
    assert scope["mentions"]["text"]["global"].shape[0] == 1


def test_baselines_stand_beside_the_results_if_they_are_of_the_same_data(command, run, tmp_path, trained):
    config = ["--config", str(trained.config), "--only", "exact_name,bm25", "--output", str(tmp_path / "base")]
    assert command("baselines", *config, folder=tmp_path)[0] == 0
    path = tmp_path / "base" / "baselines.json"
    found = json.loads(path.read_text())
    text = (export_run(run, tmp_path / "model", baselines=path) / "README.md").read_text()
    for name, title in (("bm25", "BM25, without training"), ("exact_name", "The entity of exactly this name")):
        assert re.search(rf"\| {title}.* \| {100 * found['baselines'][name]['hits@1']:.1f} \|", text), name
    path.write_text(json.dumps({**found, "mentions": 8}))
    with pytest.raises(DataError, match=r"is of 8 test mentions .*tested on 9 mentions"):
        export_run(run, tmp_path / "other", baselines=path)
    path.write_text("[]")
    with pytest.raises(DataError, match="is not what mimic-pl baselines writes"):
        export_run(run, tmp_path / "other", baselines=path)
    assert not (tmp_path / "other").exists()


def test_published_results_only_beside_all_mentions(run, tmp_path):
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["data"]["class_path"] = "mimic_pl.RichpediaMEL"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert "published (Luo" not in (export_run(run, tmp_path / "model") / "README.md").read_text()
    summary = json.loads((run / "metrics.json").read_text())
    (run / "metrics.json").write_text(json.dumps({**summary, "mentions": 3562}))
    text = (export_run(run, tmp_path / "model") / "README.md").read_text()
    assert re.search(r"published \(Luo et al\., 2023\) \| 81\.0 \| 91\.8 \| 94\.4 \| 87\.0 \| 55\.1 \|", text)


def test_results_of_other_weights_are_left_out(command, run, tmp_path):
    other = next(path for path in (run / "checkpoints").glob("*.ckpt"))
    shutil.copy(other, run / "checkpoints" / "epoch=0-other.ckpt")
    with pytest.warns(UserWarning, match=r"has no results, since metrics\.json is of .*--ckpt_path"):
        text = (export_run(run, tmp_path / "model", "epoch=0-other.ckpt") / "README.md").read_text()
    assert "There are no test results" in text
    (run / "metrics.json").unlink()
    with pytest.warns(UserWarning, match=r"was not tested\. Test it"):
        export_run(run, tmp_path / "model")
    with pytest.raises(ConfigError, match="Test the run first"):
        export_run(run, tmp_path / "model", baselines=tmp_path / "baselines.json")


def test_the_calibration_goes_along_if_it_is_of_these_weights(run, tmp_path):
    from mimic_pl.calibration import Calibration
    from mimic_pl.ranking.builder import fingerprint

    model, _ = load_run(run)
    calibration = Calibration(2.0, 1.5, 5, fingerprint(model.encoder, model.matcher))
    calibration.save(run)
    folder = export_run(run, tmp_path / "model")
    assert Calibration.load(folder) == calibration
    assert "not probabilities" not in (folder / "README.md").read_text()
    again = MIMIC.from_pretrained(folder)
    calibration.require_weights(fingerprint(again.encoder, again.matcher))
    Calibration(2.0, 1.5, 5, "other weights").save(run)
    with pytest.warns(UserWarning, match=r"calibration\.json was not exported.*other weights"):
        folder = export_run(run, tmp_path / "model")
    assert Calibration.find(folder) is None and "not probabilities" in (folder / "README.md").read_text()
    (run / "calibration.json").write_text("{")
    with pytest.raises(DataError, match="is not a calibration"):
        export_run(run, tmp_path / "model")


def test_errors_have_their_exit_codes(command, run, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    wrong = {
        (str(tmp_path / "nowhere"), "out"): (3, "is not a training run"),
        (str(run), str(tmp_path / "full")): (3, "contains other files"),
        (str(run), "out", "--checkpoint", "none.ckpt"): (5, "There is no checkpoint"),
        (str(run), "out", "--private"): (3, "only for --push"),
        (str(run), "out", "--unknown"): (2, "unknown"),
        (str(run),): (2, "folder"),
    }
    for args, (expected, message) in wrong.items():
        code, _, err = command("export", *args, folder=tmp_path)
        assert code == expected and message in err, (args, code, err)
    assert not (tmp_path / "out").exists()


def test_a_damaged_checkpoint_is_refused(run, tmp_path):
    path = next((run / "checkpoints").glob("*mrr*.ckpt"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        export_run(run, tmp_path / "model", str(path))
    assert not (tmp_path / "model").exists()


def test_exporting_twice_gives_the_same_bytes(run, tmp_path):
    first, second = (export_run(run, tmp_path / name) for name in ("one", "two"))
    for path in filter(lambda path: path.is_file(), first.rglob("*")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes(), path
    assert read_manifest(first) == read_manifest(second)
    assert open_finished(run)
