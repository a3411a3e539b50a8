"""``mimic-pl calibrate``, and ``test`` and ``predict`` of a calibrated run, against the scores of all pairs."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from mimic_pl import load_run
from mimic_pl.calibration import Calibration, fit_calibration
from mimic_pl.calibration.scored_lists import ScoredLists
from mimic_pl.files import acquire_lock
from tests.launch import needs_fork
from tests.results import read_jsonl

NIL_ROWS = {0: "nil", 3: "Q99"}
"""Test mentions without a gold in the knowledge base."""


@pytest.fixture
def data(home, tiny_set):
    """A copy of the data in which two test mentions are NIL, one by its label, one since its gold is not there."""
    root = shutil.copytree(tiny_set, home / "Tiny")
    mentions = json.loads((root / "Tiny_test.json").read_text())
    for row, answer in NIL_ROWS.items():
        mentions[row]["answer"] = answer
    (root / "Tiny_test.json").write_text(json.dumps(mentions))
    return root


def all_scores(run, root, split):
    """Overall scores ``[mentions, entities]`` of a run, and the positions of each mention's golds."""
    model, data = load_run(run)
    data.root = str(root)
    data.setup("test" if split == "test" else "validate")
    data.processor.mention_images, data.processor.entity_images = data.mention_images, data.entity_images
    mentions = data.mentions[split]
    scores = model.score(model.encode_mentions(mentions), model.encode_entities(data.entities))["overall"]
    positions = data.entities.positions
    return scores.double().numpy(), [[positions[gold] for gold in m.golds if gold in positions] for m in mentions]


def list_of(scores, golds, removed, k):
    """Scores of the top k without some entities, and whether each is a gold."""
    order = sorted((n for n in range(len(scores)) if n not in removed), key=lambda n: (-scores[n], n))[:k]
    return [scores[n] for n in order], [n in golds for n in order]


def expected_results(scores, golds, temperature, nil_score, k, held_out, relative=False):
    """Accuracy, calibration error and NIL metrics, one mention at a time."""
    cases = [(*list_of(row, own, (), k), bool(own)) for row, own in zip(scores, golds, strict=True)]
    if held_out:
        cases += [(*list_of(row, own, own, k), False) for row, own in zip(scores, golds, strict=True) if own]
    confidences, right, nils = [], [], []
    for own, is_gold, in_kb in cases:
        level = sum(own) / len(own) if relative else 0.0
        exponents = [math.exp((score - level) / temperature) for score in own]
        nil = 0.0 if nil_score is None else math.exp(nil_score / temperature)
        answers_nil = nil > exponents[0]
        confidences.append(max(nil, exponents[0]) / (nil + sum(exponents)))
        right.append(not in_kb if answers_nil else is_gold[0])
        nils.append((answers_nil, not in_kb))
    confidences, right = np.array(confidences), np.array(right)
    place = np.minimum((confidences * 10).astype(int), 9)
    bins = [place == number for number in range(10) if (place == number).any()]
    ece = sum(own.mean() * abs(right[own].mean() - confidences[own].mean()) for own in bins)
    both, answered, true = (sum(map(f, nils)) for f in (all, lambda pair: pair[0], lambda pair: pair[1]))
    f1 = 2 * both / (answered + true)
    return {"mentions": len(cases), "nil_mentions": true, "accuracy": right.mean(), "ece": ece, "nil_f1": f1}


@pytest.mark.slow
def test_the_fit_and_the_results_are_those_of_all_pairs(command, home, data):
    run = home / "lightning_logs" / "version_0"
    options = ("--data.root", str(data), "--data.eval_batch_size", "4")
    assert command("test", *options, folder=home)[0] == 0
    plain, plain_lines = json.loads((run / "metrics.json").read_text()), read_jsonl(run / "predictions.jsonl")
    assert "calibration" not in plain and "nil_probability" not in plain_lines[0]

    code, out, err = command("calibrate", *options, "--top_k", "5", "--nil_share", "0.3")
    assert code == 0, err
    assert "Using run lightning_logs/version_0" in out and "mimic-pl test --run lightning_logs/version_0" in out
    calibration = Calibration.load(run)
    scores, golds = all_scores(run, data, "val")
    lists = [list_of(row, own, (), 6) for row, own in zip(scores, golds, strict=True)]
    known = np.array([bool(own) for own in golds])
    parts = torch.tensor([own for own, _ in lists]), torch.tensor([is_gold for _, is_gold in lists])
    expected = fit_calibration(ScoredLists(*parts, torch.from_numpy(known)), 5, 0.3)
    assert calibration.temperature == pytest.approx(expected.temperature, rel=1e-3)
    assert calibration.nil_score == pytest.approx(expected.nil_score, rel=1e-3)
    source = calibration.source
    assert (source["split"], source["mentions"], source["entities"], source["nil_share"]) == ("val", 7, 12, 0.3)
    assert source["checkpoint"].startswith("epoch=")

    code, out, err = command("test", *options)
    assert code == 0 and "NIL F1" in out and "held out (16, 9 NIL)" in out, err
    summary, lines = json.loads((run / "metrics.json").read_text()), read_jsonl(run / "predictions.jsonl")
    found = summary.pop("calibration")
    assert {**summary, "predictions_sha256": 0} == {**plain, "predictions_sha256": 0}
    assert [without_probabilities(line) for line in lines] == plain_lines
    scores, golds = all_scores(run, data, "test")
    relative = calibration.relative is not None
    fitted = calibration.relative or (calibration.temperature, calibration.nil_score)
    parameters = {"softmax": (1.0, None), "calibrated": fitted}
    for cases in ("given", "held_out"):
        for kind, own in parameters.items():
            of_level = relative and kind == "calibrated"
            wanted = expected_results(scores, golds, *own, 5, cases == "held_out", of_level)
            assert {name: found[cases][kind][name] for name in wanted} == pytest.approx(wanted, abs=1e-4)
    for row, line in enumerate(lines):
        own, _ = list_of(scores[row], (), (), 5)
        probabilities, nil = calibration(torch.tensor([own]))
        written = [candidate["probability"] for candidate in line["candidates"]]
        assert written == pytest.approx([*probabilities[0].tolist(), *[0.0] * (len(written) - 5)], abs=1e-4)
        assert line["nil_probability"] == pytest.approx(float(nil[0]), abs=1e-4)

    assert command("predict", *options)[0] == 0
    links = read_jsonl(run / "links.jsonl")
    assert [line["nil_probability"] for line in links] == [line["nil_probability"] for line in lines]


def without_probabilities(line):
    """A line of the predictions as it is without a calibration."""
    candidates = [{k: v for k, v in own.items() if k != "probability"} for own in line["candidates"]]
    return {**{k: v for k, v in line.items() if k != "nil_probability"}, "candidates": candidates}


@needs_fork
def test_two_processes_report_the_same(command, home, data):
    run = home / "lightning_logs" / "version_0"
    options = ("--data.root", str(data), "--data.eval_batch_size", "4")
    Calibration(0.5, 1.0, top_k=5).save(run)
    assert command("test", *options, folder=home)[0] == 0
    one = json.loads((run / "metrics.json").read_text())
    assert command("test", *options, "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")[0] == 0
    assert json.loads((run / "metrics.json").read_text()) == one


def test_a_calibration_of_other_weights_is_not_used(command, home, caplog):
    run = home / "lightning_logs" / "version_0"
    Calibration(1.0, 0.0, weights="0" * 64, source={"checkpoint": "other.ckpt"}).save(run)
    code, out, _ = command("test", folder=home)
    assert code == 0 and "NIL F1" not in out
    assert "Probabilities are left out. The calibration was fitted on other weights (other.ckpt)" in caplog.text
    assert "calibration" not in json.loads((run / "metrics.json").read_text())
    (run / "calibration.json").write_text("{")
    code, _, err = command("test", folder=home)
    assert code == 4 and "is not a calibration" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--nil_share", "1"], 3, "--nil_share is 1.0; it must be a number above 0 and below 1."),
        (["--top_k", "0"], 3, "top_k is 0; it must be an integer of at least 1"),
        (["--config", "{config}"], 3, "omit --config and --model"),
        (["--trainer.fast_dev_run", "1"], 3, "calibrate evaluates the whole split"),
        (["--split", "train"], 2, "split"),
        (["--model.matcher", "tests.distributed.reranking.Central"], 3, "Central cannot be calibrated"),
    ],
)
def test_errors(command, home, trained, arguments, code, message):
    arguments = [argument.format(config=trained.config) for argument in arguments]
    found, _, err = command("calibrate", *arguments, folder=home)
    assert found == code and message in err, err
    assert not list(home.rglob("calibration.json"))


def test_two_commands_do_not_write_into_one_run(command, home):
    lock = acquire_lock(home / "lightning_logs" / "version_0", ".calibrate.lock")
    code, _, err = command("calibrate", folder=home)
    lock.release()
    assert code == 7 and "Another process is writing to" in err


def test_help(command):
    code, out, _ = command("calibrate", "--help")
    assert code == 0 and "--nil_share" in out
    assert "calibrate" in command("--help")[1]
