"""The file of a calibration: round trip, damage, other versions, other weights."""

from __future__ import annotations

import json

import pytest

from mimic_pl.calibration import FILE, Calibration
from mimic_pl.errors import ConfigError, DataError, MachineError

SOURCE = {"split": "val", "mentions": 12, "share": 0.5, "name": "Zoë"}
CALIBRATION = Calibration(0.1 + 0.2, -1 / 3, 7, "ab12", SOURCE, (0.1, -0.7))


def test_a_saved_calibration_is_read_back_exactly(tmp_path):
    path = CALIBRATION.save(tmp_path)
    assert path.name == FILE and Calibration.load(tmp_path) == CALIBRATION == Calibration.find(tmp_path)
    assert Calibration.load(tmp_path).temperature == 0.1 + 0.2
    assert [own.name for own in tmp_path.iterdir()] == [FILE]


def test_a_folder_without_one(tmp_path):
    assert Calibration.find(tmp_path) is None
    with pytest.raises(ConfigError, match="has no calibration. Fit one: mimic-pl calibrate --run"):
        Calibration.load(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: "{}",
        lambda text: text.replace('"top_k": 7', '"top_k": null'),
        lambda text: text.replace('"top_k": 7', '"top_k": 0'),
        lambda text: text.replace('"top_k": 7', '"top": 7'),
        lambda text: text.replace('"temperature": 0.3', '"temperature": -0.3'),
        lambda text: text.replace('"temperature": 0.30000000000000004', '"temperature": NaN'),
        lambda text: text.replace('"ab12"', "12"),
        lambda text: text.replace('"mentions": 12', '"mentions": [12]'),
        lambda text: text.replace('"top_k": 7', '"top_k": 7, "more": 1'),
        lambda text: text.replace('"temperature": 0.1', '"temperature": 0'),
        lambda text: text.replace('"temperature": 0.1', '"heat": 0.1'),
    ],
)
def test_damage_is_named(tmp_path, damage):
    path = CALIBRATION.save(tmp_path)
    text = path.read_text(encoding="utf-8")
    assert damage(text) != text
    path.write_text(damage(text), encoding="utf-8")
    with pytest.raises(DataError, match=r"calibration.json is not a calibration \(.*Fit it again"):
        Calibration.find(tmp_path)


def test_a_file_of_another_version_is_refused(tmp_path):
    path = CALIBRATION.save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 9}))
    with pytest.raises(DataError, match="has version 9 of its format; this is version 1"):
        Calibration.load(tmp_path)


def test_a_calibration_of_other_weights_is_refused():
    CALIBRATION.require_weights("ab12")
    Calibration(1.0, 0.0).require_weights("anything")  # not of a model alone
    with pytest.raises(ConfigError, match="was fitted on other weights than those of this model"):
        CALIBRATION.require_weights("cd34")


def test_a_folder_that_does_not_exist_is_a_machine_error(tmp_path):
    with pytest.raises(MachineError, match="cannot be written"):
        CALIBRATION.save(tmp_path / "missing")
