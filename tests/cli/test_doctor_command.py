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


def test_json(command, trained, broken):
    options = ["--config", str(trained.config), "--json"]
    code, out, _ = command("doctor", *options)
    report = json.loads(out)
    assert code == 0 and report["errors"] is False
    (data,) = report["data_sets"]
    assert data["root"] == str(trained.root)
    found = {finding["subject"]: finding for finding in data["findings"]}
    assert found["entities without an image"]["count"] == 4 and found["entities"]["value"] == "12"

    code, out, _ = command("doctor", *options, "--data.root", str(broken))
    report = json.loads(out)
    assert code == 4 and report["errors"] is True
    (error,) = [finding for finding in report["data_sets"][0]["findings"] if finding["verdict"] == "ERROR"]
    assert error["file"] == str(broken / "kb_entity.json") and error["count"] == 1
    assert error["place"] == "record 12 (id 0)" and error["advice"]
    assert "--json" in command("doctor", "--help")[1]


def test_lines_and_paths_are_whole_without_a_terminal(command, trained, broken, tmp_path):
    far = tmp_path / "a_folder_with_a_long_name" / "and_another_one_that_is_as_long_as_this"
    shutil.copytree(broken, far)
    _, out, _ = command("doctor", "--config", str(trained.config), "--data.root", str(far))
    (line,) = [line for line in out.splitlines() if "ERROR" in line]
    assert "kb_entity.json, record 12 (id 0): the entity 'Q0' is also record 0. Keep one of them." in line
    assert any(str(far) in line for line in out.splitlines())
