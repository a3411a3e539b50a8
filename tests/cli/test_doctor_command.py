"""``mimic-pl doctor`` takes its data from options or a configuration, and its exit code from the findings."""

from __future__ import annotations

import json
import shutil

import pytest


@pytest.fixture
def broken(trained, tmp_path):
    """A copy of the data with a duplicate id in the knowledge base."""
    root = tmp_path / "broken"
    shutil.copytree(trained.root, root)
    entities = json.loads((root / "kb_entity.json").read_text())
    (root / "kb_entity.json").write_text(json.dumps([*entities, entities[0]]))
    return root


def test_a_valid_folder(command, trained):
    by_config = command("doctor", "--config", str(trained.config))
    options = ["--data.root", str(trained.root), "--data.name", "Tiny", "--data.batch_size", "8"]
    by_options = command("doctor", "--data", "MELDataModule", *options)
    assert by_config[0] == by_options[0] == 0
    assert by_config[1] == by_options[1]
    assert "12" in by_config[1]  # entities


def test_options_override_the_configuration(command, trained, broken):
    code, _, _ = command("doctor", "--config", str(trained.config), "--data.root", str(broken))
    assert code != 0


def test_a_configuration_without_data(command, tmp_path):
    (tmp_path / "empty.yaml").write_text("trainer: {}\n")
    code, _, err = command("doctor", "--config", str(tmp_path / "empty.yaml"))
    assert code == 3
    assert "has no 'data' section" in err


def test_no_such_folder(command, trained):
    code, _, err = command("doctor", "--config", str(trained.config), "--data.root", "nowhere")
    assert code == 3
    assert "nowhere" in err
