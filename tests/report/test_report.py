"""Reports of hand-made runs: the rows of the table and the contents of the plots."""

from __future__ import annotations

import csv
import json
import statistics

import matplotlib
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.colors import to_rgb
from PIL import Image

from mimic_pl import MIMIC, CLIPEncoder
from mimic_pl.calibration import reliability
from mimic_pl.construction import describe
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.figures import COLOURS, panels, save
from mimic_pl.report import group_runs, open_finished, write_report
from mimic_pl.report.confidence import softmax_answers
from mimic_pl.report.experiments import differences
from mimic_pl.report.plots import (
    curves_figure,
    hits_figure,
    reliability_figure,
    risk_coverage_figure,
    robustness_figure,
    unit_curves_figure,
)
from mimic_pl.run_settings import settings_of
from tests import tiny
from tests.report.conftest import write_curve, write_run

LR = "model.init_args.optimizer.init_args.lr"
TEMPLATES = "model.init_args.processor.init_args"


def experiments_of(*folders):
    return group_runs([open_finished(folder) for folder in folders])


def test_seeds_paths_and_logging_do_not_distinguish_experiments(tmp_path):
    first = write_run(tmp_path / "base" / "version_0", [1, 2])
    ignored = {
        "trainer.default_root_dir": "/elsewhere",
        "trainer.log_every_n_steps": 7,
        "data.init_args.root": "../moved/Tiny",
        "data.init_args.num_workers": 3,
        "model.init_args.index": {"class_path": "mimic_pl.ranking.IndexBuilder", "init_args": {"storage": "disk"}},
        "model.init_args.encoder.init_args.frozen_features": None,
    }
    seed = write_run(tmp_path / "base" / "version_1", [1, 1], seed=44, changes=ignored)
    (found,) = experiments_of(first, seed, first)  # the first is given twice
    assert (found.name, found.dataset, found.seeds) == ("base", "Tiny", ["43", "44"])


@pytest.mark.parametrize(
    "change",
    [
        {LR: 0.1},
        {"trainer.max_epochs": 3},
        {f"{TEMPLATES}.entity_template": "{name}"},
        {"data.init_args.root": "/x/Y"},
    ],
)
def test_settings_that_affect_results_distinguish_experiments_and_are_named(tmp_path, change):
    first = write_run(tmp_path / "lightning_logs" / "version_0", [1, 2])
    other = write_run(tmp_path / "lightning_logs" / "version_1", [1, 1], changes=change)
    one, two = experiments_of(first, other)
    assert (one.name, two.name) == (f"{tmp_path.name}/version_0", f"{tmp_path.name}/version_1")
    (name,) = change
    ((found, _, after),) = differences(one, two)
    assert found == name.replace(".init_args", "")
    assert after == str(change[name]).rpartition("/")[2]


PROCESSOR = {
    "class_path": "mimic_pl.processor.Processor",
    "init_args": {"entity_template": "{name} [SEP] {attr}", "image_policy": "blank", "max_pixels": 89_478_485},
}


def test_explicit_defaults_are_not_differences(tmp_path):
    """A setting that equals its default may be omitted, null or explicit, and its class named by any module."""
    first = write_run(tmp_path / "base" / "version_0", [1, 2], changes={"model.init_args.processor": None})
    changes = {
        "model.init_args.processor": PROCESSOR,
        "model.init_args.losses": {"contrastive": {"class_path": "mimic_pl.losses.UnitConsistentLoss"}},
        "model.init_args.index": None,
        "model.init_args.matcher": {"class_path": "mimic_pl.units.Matcher"},
        "model.init_args.global_negatives": True,
        "model.init_args.units.text": {"class_path": "mimic_pl.TGLU", "init_args": {"hidden_dim": 8, "kernel": "auto"}},
        "model.init_args.optimizer.init_args.betas": [0.9, 0.999],
        "data.init_args.train_fraction": 1.0,
    }
    again = write_run(tmp_path / "base" / "version_1", [1, 1], seed=44, changes=changes)
    (found,) = experiments_of(first, again)
    assert found.seeds == ["43", "44"]


def test_an_added_class_differs_only_in_settings_that_are_not_defaults(tmp_path):
    first = write_run(tmp_path / "base" / "version_0", [1, 2], changes={"model.init_args.processor": None})
    modalities = {"class_path": "mimic_pl.Processor", "init_args": {**PROCESSOR["init_args"], "modalities": "text"}}
    other = write_run(tmp_path / "text_only" / "version_0", [2, 2], changes={"model.init_args.processor": modalities})
    one, two = experiments_of(first, other)
    assert differences(one, two) == [("model.processor.modalities", "both", "text")]


def test_settings_left_out_equal_what_the_model_builds():
    model = MIMIC(CLIPEncoder(**tiny.ENCODER))
    built = {
        "processor": describe(model.processor),
        "losses": {name: describe(loss) for name, loss in model.losses.items()},
        "index": describe(model.index_builder),
        # Without the arguments that depend on the encoder.
        "matcher": {"class_path": model.matcher.description["class_path"]},
        "units": {name: {"class_path": unit.description["class_path"]} for name, unit in model.matcher.named_units()},
    }
    left_out = settings_of({"model": {"class_path": "mimic_pl.MIMIC"}})
    assert settings_of({"model": {"class_path": "mimic_pl.MIMIC", "init_args": built}}) == left_out


def test_reports_run_no_third_party_code(tmp_path, monkeypatch):
    (tmp_path / "theirs.py").write_text("raise SystemExit('run')")
    monkeypatch.syspath_prepend(tmp_path)
    unit = {"class_path": "theirs.Unit", "init_args": {"width": 4}}
    first = write_run(tmp_path / "base" / "version_0", [1, 2])
    other = write_run(tmp_path / "theirs" / "version_0", [2, 2], changes={"model.init_args.units.text": unit})
    found = {name: after for name, _, after in differences(*experiments_of(first, other))}
    assert found["model.units.text.class_path"] == "theirs.Unit" and found["model.units.text.width"] == "4"


def test_baselines_of_one_configuration_are_distinguished_by_name(tmp_path):
    folders = [write_run(tmp_path / "baselines" / name, [1, 2]) for name in ("one", "two")]
    for folder in folders:
        summary = json.loads((folder / "metrics.json").read_text())
        summary |= {"baseline": f"baseline {folder.name}", "checkpoint": None}
        (folder / "metrics.json").write_text(json.dumps(summary))
    assert [experiment.name for experiment in experiments_of(*folders)] == ["baseline one", "baseline two"]


def test_rows_hold_mean_deviation_inputs_and_published_results(tmp_path):
    data = {"class_path": "mimic_pl.WikiMEL", "init_args": {"root": "/data/WikiMEL"}}
    changes = {f"{TEMPLATES}.entity_template": "{name} | {x}"}
    ranks = [[1, 2, 1, 12], [1, 1, 1, None], [3, 2, 1, 1]]
    runs = [
        write_run(tmp_path / "it" / f"version_{i}", r, seed=i, data=data, changes=changes) for i, r in enumerate(ranks)
    ]
    write_report([open_finished(run) for run in runs], tmp_path / "out")
    row, published = csv.DictReader((tmp_path / "out" / "report.csv").open())
    hits = [sum(rank == 1 for rank in own) / 4 for own in ranks]
    assert float(row["hits@1_mean"]) == pytest.approx(statistics.mean(hits))
    assert float(row["hits@1_deviation"]) == pytest.approx(statistics.stdev(hits))
    wanted = {"experiment": "it", "dataset": "WikiMEL", "seeds": "0, 1, 2", "entities": "12", "mentions": "4"}
    wanted |= {"entity_text": "{name} | {x}", "encoder": "CLIPEncoder from scratch", "epochs": "4 of 2"}
    assert wanted.items() <= row.items()
    assert published["hits@1_mean"] == "0.8798" and published["entities"] == "109976"
    lines = (tmp_path / "out" / "report.md").read_text().splitlines()
    table = [line.replace("\\|", "¦") for line in lines if line.startswith("|")][:4]
    assert len({line.count("|") for line in table}) == 1  # a bar in a template is escaped
    assert "`{name} ¦ {x}`" in table[2]
    assert f"{100 * statistics.mean(hits):.2f} ± {100 * statistics.stdev(hits):.2f}" in table[2]
    assert "87.98" in table[3] and "109,976" in table[3]


def test_dev_and_unseen_golds_are_reported_next_to_the_test_results(tmp_path):
    """Dev metrics are those of the tested checkpoint (epoch=3 in its name), and empty for a run without any."""
    runs = [write_run(tmp_path / "it" / f"version_{i}", [1, 2], seed=i) for i in range(2)]
    for run, hits in zip(runs, (0.5, 0.25), strict=True):
        write_curve(run, {1: 0.125, 3: hits, 5: 0.0625}, "val/hits@1")
        write_curve(run, {1: 0.125, 3: 0.75, 5: 0.0625})
        summary = json.loads((run / "metrics.json").read_text())
        summary["subsets"] = {
            name: {"mentions": 1, "metrics": {"hits@1": value, "mrr": value}}
            for name, value in (("seen", 1.0), ("unseen", hits / 2))
        }
        (run / "metrics.json").write_text(json.dumps(summary))
    without = write_run(tmp_path / "without" / "version_0", [2, 2], changes={LR: 9.0})
    write_report([open_finished(run) for run in (*runs, without)], tmp_path / "out")
    row, other = csv.DictReader((tmp_path / "out" / "report.csv").open())
    wanted = {"dev_hits@1": 0.375, "dev_mrr": 0.75, "seen_hits@1": 1.0, "unseen_hits@1": 0.1875}
    assert {name: float(row[f"{name}_mean"]) for name in wanted} == pytest.approx(wanted)
    assert float(row["dev_hits@1_deviation"]) == pytest.approx(statistics.stdev([0.5, 0.25]))
    assert not any(other[f"{name}_mean"] for name in wanted)
    assert "| dev H@1 | dev MRR | seen H@1 | unseen H@1 | text H@1 |" in (tmp_path / "out" / "report.md").read_text()

    write_report([open_finished(without)], tmp_path / "alone")
    assert "dev H@1" not in (tmp_path / "alone" / "report.md").read_text()


def test_runs_below_the_working_directory_are_named_from_there(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    inside = write_run(tmp_path / "here" / "runs" / "it" / "version_0", [1, 2])
    outside = write_run(tmp_path / "elsewhere" / "version_0", [1, 1], changes={LR: 9.0})
    write_report([open_finished(inside), open_finished(outside)], "out")
    text = (tmp_path / "here" / "out" / "report.md").read_text()
    assert "| runs/it/version_0 |" in text and f"| {outside} |" in text


def test_a_complete_report(tmp_path):
    """Files, sections, warnings, and no change to the global state of matplotlib."""
    before = dict(matplotlib.rcParams)
    base = write_run(tmp_path / "base" / "version_0", [1] * 30 + [2] * 10, curve={1: 0.4, 3: 0.5})
    again = write_run(tmp_path / "base" / "version_1", [1] * 31 + [2] * 9)
    worse = write_run(tmp_path / "worse" / "version_0", [2] * 40, changes={LR: 9.0})
    short = write_run(tmp_path / "short" / "version_0", [1] * 5, changes={f"{TEMPLATES}.mention_template": "{mention}"})
    records = [
        {"kind": "blur", "side": "image", "strength": s, "metrics": {"overall": {"hits@1": 0.5 - s / 10}}}
        for s in (0.0, 2.0, 1.0)
    ]
    (worse / "robustness.json").write_text(json.dumps(records))
    runs = [open_finished(folder) for folder in (worse, short, base, again)]
    with pytest.raises(DataError, match="short cannot be compared with base"):
        write_report(runs, tmp_path / "strict", baseline=open_finished(base))
    assert not (tmp_path / "strict").exists()

    written = write_report(runs, tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert {path.name for path in written} == {
        "report.md", "report.csv", "mrr_by_epoch.png", "hits.png", "robustness_worse.png", "calibration.png",
        "risk_coverage.png",
    }  # fmt: skip
    for path in written:
        if path.suffix == ".png":
            assert f"({path.name})" in text
            assert Image.open(path).width > 300
    assert "**Rows of Tiny differ in text of mentions, number of mentions: only compare those that agree.**" in text
    assert "base has several runs of seed 43" in text
    assert "| base | model.optimizer.lr | 0.001 | 9.0 in worse |" in text
    (compared,) = [line for line in text.splitlines() if line.startswith("| base | worse |")]
    assert "+76.25" in compared and "< 0.001" in compared
    assert "| short | worse | not compared:" in text
    assert dict(matplotlib.rcParams) == before and not Gcf.figs


def test_curves_are_those_of_the_event_files(tmp_path):
    """By number of trained epochs; the later values of a resumed run take precedence."""
    run = write_run(tmp_path / "base" / "version_0", [1, 2], curve={1: 0.25, 3: 0.75})
    write_curve(run, {3: 0.5, 5: 0.375})
    (experiment,) = experiments_of(run)
    assert experiment.runs[0].curve == [(2, 0.25), (4, 0.5), (6, 0.375)]
    (axis,) = curves_figure([experiment]).axes
    line, dot = axis.get_lines()
    np.testing.assert_allclose(line.get_xydata(), [(2, 25), (4, 50), (6, 37.5)])
    np.testing.assert_allclose(dot.get_xydata(), [(4, 50)])  # epoch=3 in the name of the tested checkpoint
    without = write_run(tmp_path / "none" / "version_0", [1, 2])
    assert curves_figure(experiments_of(without)) is None


def test_curves_of_units_are_those_of_the_event_files(tmp_path):
    runs = [write_run(tmp_path / "base" / f"version_{seed}", [1, 2], seed=seed) for seed in (1, 2)]
    for number, run in enumerate(runs):
        write_curve(run, {1: 0.25, 3: 0.5 + number / 4}, "val/hits@1")
        write_curve(run, {1: 0.125, 3: 0.25}, "val/text/hits@1")
    once = write_run(tmp_path / "once" / "version_0", [1, 2], changes={LR: 9.0})
    write_curve(once, {1: 0.25}, "val/hits@1")  # a point is no curve
    (axis,) = unit_curves_figure(experiments_of(*runs, once)).axes
    lines = [(line.get_label(), line.get_color(), line.get_xydata().tolist()) for line in axis.get_lines()]
    overall, text = COLOURS[:2]
    assert lines == [
        ("overall", overall, [[2, 25], [4, 50]]),
        ("text", text, [[2, 12.5], [4, 25]]),
        ("overall", overall, [[2, 25], [4, 75]]),
        ("text", text, [[2, 12.5], [4, 25]]),
    ]
    assert unit_curves_figure(experiments_of(once)) is None


def test_bars_and_robustness_curves_show_the_metrics(tmp_path):
    run = write_run(tmp_path / "base" / "version_0", [1, 1, 2, 3])
    records = [
        {"kind": "blur", "side": "image", "strength": s, "metrics": {"overall": {"hits@1": h}}}
        for s, h in ((4.0, 0.125), (0.0, 0.5), (1.0, 0.25))
    ]
    (run / "robustness.json").write_text(json.dumps(records))
    (experiment,) = experiments_of(run)
    (axis,) = hits_figure([experiment]).axes
    assert [bar.get_width() for bar in axis.patches] == [50.0, 0.0]
    (axis,) = robustness_figure(experiment).axes
    np.testing.assert_allclose(axis.get_lines()[0].get_xydata(), [(0, 50), (1, 25), (4, 12.5)])


def test_saved_figures_are_small_and_keep_their_colours(tmp_path):
    figure, (axis,) = panels(1)
    for number, colour in enumerate(COLOURS):
        axis.barh(number, 1, 1, color=colour)
    image = Image.open(save(figure, tmp_path / "small.png"))
    figure.savefig(tmp_path / "large.png", dpi=120)
    assert 2 * (tmp_path / "small.png").stat().st_size < (tmp_path / "large.png").stat().st_size
    drawn = np.asarray(Image.open(tmp_path / "large.png").convert("RGB"), dtype=int)
    assert np.abs(np.asarray(image.convert("RGB"), dtype=int) - drawn).max(axis=-1).mean() < 1
    kept = np.array([colour for _, colour in image.convert("RGB").getcolors()])
    for wanted in COLOURS:
        assert np.abs(kept - 255 * np.array(to_rgb(wanted))).max(axis=1).min() <= 4  # of 255


def test_calibration_equals_counting_one_by_one(tmp_path):
    generator = np.random.default_rng(0)
    scores = [sorted(generator.normal(0, 2, generator.integers(2, 5)), reverse=True) for _ in range(200)]
    ranks = [int(rank) for rank in generator.integers(1, 3, 200)]
    answers = softmax_answers(open_finished(write_run(tmp_path / "a", ranks, scores=scores)).predictions)
    found = reliability(answers.confidence, answers.correct, bins=4)
    bins = [[], [], [], []]
    for own, rank in zip(scores, ranks, strict=True):
        confidence = np.exp(own[0]) / sum(np.exp(score) for score in own)
        bins[next(b for b in range(4) if confidence < (b + 1) / 4)].append((confidence, rank == 1))
    filled = [bin_ for bin_ in bins if bin_]
    error = sum(len(b) / 200 * abs(np.mean([r for _, r in b]) - np.mean([c for c, _ in b])) for b in filled)
    assert found.error == pytest.approx(error)
    np.testing.assert_allclose(found.share, [len(bin_) / 200 for bin_ in bins])


def test_a_calibrated_run_is_shown_with_golds_in_and_out(tmp_path):
    run = write_run(tmp_path / "base" / "version_0", [1, None, 2], scores=[[2.0, 1.0], [2.0, 2.0], [2.0, -3.0]])
    metrics = {"mentions": 3, "nil_mentions": 1, "accuracy": 2 / 3, "ece": 0.125, "aurc": 0.25, "nil_f1": 0.6667}
    curves = {"reliability": [[0.25, 0.5, 0.75], [0.85, 1.0, 0.25]], "risk_coverage": [[0.25, 0.0], [1.0, 0.375]]}
    summary = json.loads((run / "metrics.json").read_text())
    summary["calibration"] = {
        "temperature": 2.0,
        "given": {"softmax": {**metrics, "ece": 0.5}, "calibrated": metrics},
        "curves": {"softmax": {**curves, "risk_coverage": [[1.0, 0.5]]}, "calibrated": curves},
    }
    (run / "metrics.json").write_text(json.dumps(summary))

    given, _, calibrated = reliability_figure(experiments_of(run)).axes
    assert "base, softmax of 2\n" in given.get_title() and "base, held out, calibrated\n" in calibrated.get_title()
    assert bars(calibrated) == {0.2: 0.5, 0.8: 1.0}
    assert "expected calibration error 22.5 %" in calibrated.get_title()  # 0.75 * 0.25 + 0.25 * 0.15
    assert bars(given) == {0.5: 0.0, 0.7: 1.0, 0.9: 0.0}  # sigmoid of 0, 1 and 5
    (axis,) = risk_coverage_figure(experiments_of(run)).axes
    lines = [line.get_xydata().tolist() for line in axis.get_lines()]
    np.testing.assert_allclose(lines[0], [(100 / 3, 100), (200 / 3, 50), (100, 200 / 3)], atol=1e-2)
    assert lines[1:] == [[[100, 50]], [[25, 0], [100, 37.5]]]

    write_report([open_finished(run)], tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "| base | 43 | given | softmax | 1 | 66.67 | 50.00 | 25.00 | 66.67 |  |  |" in text
    assert "| base | 43 | given | calibrated | 1 | 66.67 | 12.50 | 25.00 | 66.67 |  |  |" in text
    for damage in ({"given": {"calibrated": {**metrics, "ece": "low"}}}, {"curves": {"softmax": {"reliability": []}}}):
        (run / "metrics.json").write_text(json.dumps({**summary, "calibration": damage}))
        with pytest.raises(DataError, match="metrics.json cannot be read"):
            open_finished(run)


def bars(axis):
    """Heights of the bars of an axis by where they begin."""
    return {round(bar.get_x(), 1): round(bar.get_height(), 6) for bar in axis.patches if hasattr(bar, "get_x")}


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda run: (run / "config.yaml").unlink(), ConfigError, "is not a run: it has no config.yaml"),
        (
            lambda run: (run / "metrics.json").unlink(),
            ConfigError,
            "was not tested. Test it first: mimic-pl test --run",
        ),
        (lambda run: (run / "metrics.json").write_text("{}"), DataError, "mimic-pl test --run"),
        (lambda run: (run / "predictions.jsonl").unlink(), ConfigError, "has no predictions.jsonl. Test it again"),
        (lambda run: (run / "predictions.jsonl").write_text("{}\n"), DataError, "predictions.jsonl, line 1"),
        (lambda run: (run / "robustness.json").write_text("[{}]"), DataError, "robustness.json is not a list"),
    ],
)
def test_missing_or_malformed_files_are_named(tmp_path, damage, error, message):
    run = write_run(tmp_path / "base" / "version_0", [1, 2])
    damage(run)
    with pytest.raises(error, match=message):
        write_report([open_finished(run)], tmp_path / "out")


def test_a_folder_of_runs_is_not_a_run_and_the_runs_are_named(tmp_path):
    write_run(tmp_path / "base" / "version_0", [1, 2])
    with pytest.raises(ConfigError, match=r"Did you mean .*base/version_0\?"):
        open_finished(tmp_path / "base")
