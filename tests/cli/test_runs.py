"""Finding runs on disk and their best and last checkpoints, and loading them."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image

from mimic_pl.cli import main
from mimic_pl.errors import CheckpointError, ConfigError
from mimic_pl.runs import find_runs, head_of_config, load_run, newest_run, open_run, run_of_checkpoint
from tests.readme import readme_block


def make_run(folder, *checkpoints, best=None, started=None, steps=()):
    """A run folder with checkpoints that hold no weights, whose times contradict their order."""
    (folder / "checkpoints").mkdir(parents=True)
    head = f"# mimic-pl 0.1.0, started {started}\n" if started else ""
    (folder / "config.yaml").write_text(f"{head}model: {{}}\n")
    state = {"monitor": "val/mrr", "best_model_path": f"/moved/elsewhere/checkpoints/{best}"} if best else {}
    for number, name in enumerate(checkpoints):
        path = folder / "checkpoints" / name
        callbacks = {"ModelCheckpoint{'monitor': 'val/mrr'}": state}
        step = steps[number] if steps else 0
        torch.save({"callbacks": callbacks, "state_dict": {}, "global_step": step}, path)
        os.utime(path, (1000 - number, 1000 - number))
    return folder


def test_newest_is_the_one_started_last(tmp_path):
    make_run(tmp_path / "version_2", "last.ckpt", started="2026-01-01T00:00:00+00:00")
    make_run(tmp_path / "version_0", "last.ckpt", started="2026-01-03T00:00:00+00:00")
    make_run(tmp_path / "deeper" / "version_3", "last.ckpt", started="2026-01-02T00:00:00+00:00")
    make_run(tmp_path / "version_11", "last.ckpt")  # of an earlier version
    make_run(tmp_path / "version_9", "last.ckpt")
    (tmp_path / "version_12").mkdir()
    (tmp_path / "version_12" / "config.yaml").write_text("{}")  # a test's folder: no checkpoints
    names = [run.folder.name for run in find_runs(tmp_path)]
    assert names == ["version_0", "version_3", "version_2", "version_11", "version_9"]
    assert newest_run(tmp_path).folder == (tmp_path / "version_0").resolve()


def test_a_run_is_newer_than_those_before_even_if_the_clock_was_set_back(tmp_path):
    for number in range(3):
        make_run(tmp_path / f"version_{number}", "last.ckpt")
    for number, started in ((1, "2099-01-01T00:00:00+00:00"), (2, "no time")):
        (tmp_path / f"version_{number}" / "config.yaml").write_text(f"# mimic-pl 9, started {started}\n")
    (tmp_path / "version_0" / "config.yaml").write_text(head_of_config(tmp_path / "version_0"))
    assert [run.folder.name for run in find_runs(tmp_path)] == ["version_0", "version_1", "version_2"]


def test_dangling_links_are_neither_runs_nor_checkpoints(tmp_path):
    run = make_run(tmp_path / "version_0", "epoch=1-mrr=0.5000.ckpt", "last.ckpt")
    for name in ("epoch=3-mrr=0.9000.ckpt", "last-v1.ckpt"):
        (run / "checkpoints" / name).symlink_to("deleted.ckpt")
    broken = make_run(tmp_path / "version_1")
    (broken / "checkpoints" / "last.ckpt").symlink_to("deleted.ckpt")
    (tmp_path / "version_2").symlink_to("deleted")
    (tmp_path / "config.yaml").symlink_to("deleted.yaml")
    found = newest_run(tmp_path)
    assert found.folder == run.resolve()
    assert (found.best_checkpoint.name, found.last_checkpoint.name) == ("epoch=1-mrr=0.5000.ckpt", "last.ckpt")


def test_no_run(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no training run in .*mimic-pl fit --config"):
        newest_run(tmp_path / "lightning_logs")
    with pytest.raises(ConfigError, match="is not a training run: it needs a config.yaml"):
        open_run(tmp_path)


def test_best_is_the_one_recorded_in_the_last_checkpoint(tmp_path):
    """The earlier of two with the same metric, although the folder was moved."""
    names = ["epoch=1-mrr=0.5000.ckpt", "epoch=3-mrr=0.5000.ckpt", "last.ckpt"]
    run = open_run(make_run(tmp_path / "run", *names, best=names[0], steps=[1, 3, 3]))
    assert run.best_checkpoint.name == names[0]
    assert run.checkpoint("last").name == "last.ckpt"


def test_best_by_name_if_none_is_recorded(tmp_path):
    names = ["epoch=1-mrr=0.0900.ckpt", "epoch=3-mrr=0.6000.ckpt", "epoch=5-mrr=0.1000.ckpt", "last.ckpt"]
    assert open_run(make_run(tmp_path / "a", *names)).best_checkpoint.name == names[1]
    assert open_run(make_run(tmp_path / "b", *names, best="deleted.ckpt")).best_checkpoint.name == names[1]
    equal = ["epoch=3-mrr=0.6000.ckpt", "epoch=1-mrr=0.6000.ckpt"]
    assert open_run(make_run(tmp_path / "c", *equal, steps=[3, 1])).best_checkpoint.name == equal[1], "the earlier"


@pytest.mark.parametrize("damage", [b"", b"no archive", None])
def test_best_of_a_run_whose_last_checkpoint_is_damaged(tmp_path, damage):
    names = ["epoch=1-mrr=0.7000.ckpt", "epoch=3-mrr=0.6000.ckpt", "last.ckpt"]
    run = open_run(make_run(tmp_path / "run", *names))
    last = tmp_path / "run" / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100] if damage is None else damage)
    assert run.best_checkpoint.name == names[0]


def test_newest_of_several_last_checkpoints(tmp_path):
    run = open_run(make_run(tmp_path / "run", "last.ckpt", "last-v1.ckpt", steps=[5, 7]))
    assert run.last_checkpoint.name == "last-v1.ckpt"


def test_an_ambiguous_best_checkpoint_is_an_error(tmp_path):
    with pytest.raises(ConfigError, match=r"The best checkpoint in .* cannot be determined.*--ckpt_path"):
        _ = open_run(make_run(tmp_path / "a", "step=1.ckpt", "step=2.ckpt")).best_checkpoint
    assert open_run(make_run(tmp_path / "c", "last.ckpt")).best_checkpoint.name == "last.ckpt", "without validation"
    assert open_run(make_run(tmp_path / "b", "one.ckpt")).best_checkpoint.name == "one.ckpt"


@pytest.mark.parametrize(
    ("names", "steps", "last"),
    [
        (["epoch=0.ckpt"], [3], "epoch=0.ckpt"),  # killed before the first last.ckpt
        (["last.ckpt", "epoch=1.ckpt"], [3, 6], "epoch=1.ckpt"),  # killed before the next
        (["last.ckpt", "epoch=1.ckpt"], [6, 6], "last.ckpt"),
        (["last.ckpt", "epoch=0.ckpt"], [6, 3], "last.ckpt"),  # a copy in which the older file is the newer
        (["step=7.ckpt", "step=9.ckpt", "step=8.ckpt"], [7, 9, 8], "step=9.ckpt"),
    ],
)
def test_last_is_the_checkpoint_with_the_most_steps(tmp_path, names, steps, last):
    folder = make_run(tmp_path / "run", *names, steps=steps)
    (folder / "checkpoints" / "last.ckpt.tmp").write_bytes(b"half of one")
    assert open_run(folder).last_checkpoint.name == last
    torch.save({"state_dict": {}, "global_step": max(steps) + 1}, folder / "hpc_ckpt_1.ckpt")
    assert open_run(folder).last_checkpoint.name == "hpc_ckpt_1.ckpt", "of a requeued SLURM job"


def test_run_of_a_checkpoint(tmp_path):
    folder = make_run(tmp_path / "run", "last.ckpt")
    assert run_of_checkpoint(folder / "checkpoints" / "last.ckpt").folder == folder.resolve()
    assert run_of_checkpoint(tmp_path / "weights.ckpt") is None


def test_a_trained_run_is_loaded_with_its_best_weights(trained):
    model, data = load_run(trained.run)
    best = open_run(trained.run).best_checkpoint
    weights = torch.load(best, weights_only=True)["state_dict"]
    loaded = model.state_dict()
    assert weights.keys() == loaded.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())
    assert not model.training
    assert str(data.root) == str(trained.root)


def test_model_and_data_of_a_run_are_connected(trained):
    """Image names of records are looked up in the folders of the data, not in the working directory."""
    model, data = load_run(trained.run)
    mentions, entities = data.read_mentions("test"), data.entities
    found = model.score(model.encode_mentions(mentions), model.encode_entities(entities))
    paths = [replace(e, images=tuple(str(data.entity_images.path(name)) for name in e.images)) for e in entities]
    named = [replace(m, image=m.image and str(data.mention_images.path(m.image))) for m in mentions]
    model.processor.mention_images = model.processor.entity_images = None
    expected = model.score(model.encode_mentions(named), model.encode_entities(paths))
    for name, scores in expected.items():
        assert torch.equal(found[name], scores)
    blank = model.score(model.encode_mentions(mentions), model.encode_entities(entities))
    assert not torch.equal(found["vision"], blank["vision"])
    explanation = model.explain(named[0], entities[0].id, model.build_index(paths))
    assert explanation.scores["vision"].score == pytest.approx(float(expected["vision"][0, 0]), abs=1e-5)


def test_the_readme_links_a_mention(trained, tmp_path, monkeypatch, capsys):
    (tmp_path / "lightning_logs").symlink_to(trained.home / "lightning_logs")
    images = tmp_path / "data" / "Demo" / "mention_images"
    images.mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(images / "test-0.jpg")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(readme_block("from mimic_pl import Ranker, load_run"), names)
    scores = names["model"].score(
        names["model"].encode_mentions([names["mention"]]), names["model"].encode_entities(names["data"].entities)
    )
    best = scores["overall"][0].argsort(descending=True, stable=True)[:3]
    assert names["links"] == [names["data"].entities[int(n)].id for n in best]
    assert capsys.readouterr().out.startswith(f"{names['links'][1]}: rank 2 of {len(names['data'].entities)}")


@pytest.mark.own_process
def test_the_readme_links_to_a_knowledge_base_of_a_file(trained, home, monkeypatch, capsys):
    images = home / "data" / "Demo" / "mention_images"
    images.mkdir(parents=True)
    Image.new("RGB", (9, 9), "red").save(images / "test-0.jpg")
    monkeypatch.chdir(home)
    main(
        [
            "convert",
            "kb",
            str(trained.root / "kb_entity.json"),
            "my_kb.csv",
            "--image_folder",
            f"{trained.root}/kb_image",
        ]
    )
    capsys.readouterr()
    names: dict[str, Any] = {}
    exec(readme_block("from mimic_pl import Linker"), names)
    model, data = load_run("lightning_logs/version_0")
    scores = model.score(model.encode_mentions([names["mention"]]), model.encode_entities(data.entities))["overall"][0]
    best = scores.argsort(descending=True, stable=True)[:5].tolist()
    assert [link.entity.id for link in names["links"]] == [data.entities[position].id for position in best]
    assert capsys.readouterr().out.startswith(f"{data.entities[best[0]].id} {data.entities[best[0]].name} ")
    assert Image.open("why.png").format == "PNG"


def test_the_best_checkpoint_has_the_best_logged_metric(trained):
    checkpoints = [p for p in open_run(trained.run).checkpoints if p.name != "last.ckpt"]
    best = open_run(trained.run).best_checkpoint
    assert best in checkpoints
    callbacks = torch.load(trained.run / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]
    (state,) = [state for state in callbacks.values() if state.get("monitor") == "val/mrr" and "best_k_models" in state]
    assert f"mrr={float(state['best_model_score']):.4f}" in best.name


def test_weights_of_another_model(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained.run, folder)
    config = (folder / "config.yaml").read_text()
    assert "image_dim: 8" in config
    (folder / "config.yaml").write_text(config.replace("image_dim: 8", "image_dim: 4"))
    with pytest.raises(CheckpointError, match="do not fit the model of"):
        load_run(folder)


def test_a_configuration_without_a_model(tmp_path):
    folder = make_run(tmp_path / "run", "one.ckpt")
    (folder / "config.yaml").write_text(json.dumps({"data": {"class_path": "mimic_pl.WikiMEL"}}))
    with pytest.raises(ConfigError, match="does not describe a model and its data"):
        load_run(folder)
