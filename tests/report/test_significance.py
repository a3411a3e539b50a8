"""The paired bootstrap against scipy, against all possible resamples, and against the normal distribution."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from mimic_pl.errors import DataError
from mimic_pl.report import open_finished, paired_bootstrap
from mimic_pl.report.significance import compare
from tests.report.conftest import write_run


def test_the_interval_equals_that_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    generator = np.random.default_rng(1)
    differences = generator.normal(0.1, 1.0, 200) ** 3  # skewed, so that the percentile interval is not symmetric
    found = paired_bootstrap({"x": differences})["x"]
    theirs = stats.bootstrap(
        (differences,), np.mean, n_resamples=10_000, method="percentile", random_state=np.random.default_rng(2)
    ).confidence_interval
    error = differences.std() / math.sqrt(len(differences))
    assert found.difference == pytest.approx(differences.mean())
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.1 * error)


@pytest.mark.parametrize("differences", [[1.0, 0.0, 0.0, 1.0], [1.0, -1.0, 0.5, 1.0], [-1.0, -1.0, 0.25, 0.0]])
def test_p_equals_that_of_all_resamples(differences):
    draws = np.array([np.mean(draw) for draw in itertools.product(differences, repeat=4)])
    mean = np.mean(differences)
    exact = np.mean(np.abs(draws - mean) >= abs(mean) - 1e-12)
    found = paired_bootstrap({"x": np.array(differences)}, resamples=40_000)["x"]
    assert found.p == pytest.approx(exact, abs=0.01)
    # The ends may be on either side of a step of the distribution.
    step = np.percentile(draws, [1.5, 3.5, 96.5, 98.5])
    assert step[0] <= found.low <= step[1] and step[2] <= found.high <= step[3]


def test_p_of_many_mentions_equals_the_normal_approximation():
    generator = np.random.default_rng(4)
    differences = generator.choice([-1.0, 0.0, 1.0], 2000, p=[0.1, 0.77, 0.13])
    z = differences.mean() / (differences.std() / math.sqrt(2000))
    assert paired_bootstrap({"x": differences})["x"].p == pytest.approx(math.erfc(abs(z) / math.sqrt(2)), abs=0.01)


def test_equal_runs_do_not_differ_and_the_seed_decides_the_interval():
    assert paired_bootstrap({"x": np.zeros(9)})["x"] == (0.0, 0.0, 0.0, 1.0)
    values = {"x": np.arange(20.0) - 8}
    assert paired_bootstrap(values, 500, seed=1) == paired_bootstrap(values, 500, seed=1)
    assert paired_bootstrap(values, 500, seed=1) != paired_bootstrap(values, 500, seed=2)


def predictions(folder, *args, **kwargs):
    return open_finished(write_run(folder, *args, **kwargs)).predictions


def test_mentions_are_paired_by_id_and_seeds_are_averaged(tmp_path):
    first = predictions(tmp_path / "a", [1, 2, None, 4])
    again = predictions(tmp_path / "b", [1, 1, 1, 1])
    path = tmp_path / "c"
    write_run(path, [2, 2, 2, 2])
    lines = (path / "predictions.jsonl").read_text().splitlines()
    (path / "predictions.jsonl").write_text("\n".join(reversed(lines)) + "\n")
    other = open_finished(path).predictions
    found = compare([first, again], [other])
    assert found["hits@1"].difference == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert found["mrr"].difference == pytest.approx((1 + 0.75 + 0.5 + 0.625) / 4 - 0.5)


def test_other_mentions_are_rejected_and_named(tmp_path):
    first = predictions(tmp_path / "a", [1] * 9)
    fewer = predictions(tmp_path / "b", [1] * 3)
    with pytest.raises(DataError, match=r"9 mentions, the other on 3; only the first has 6 .*test-3.*\.\.\.\)"):
        compare([first], [fewer])
    path = write_run(tmp_path / "c", [1] * 9)
    text = (path / "predictions.jsonl").read_text()
    (path / "predictions.jsonl").write_text(text.replace('"golds": [{"qid": "Q5"', '"golds": [{"qid": "Q77"'))
    with pytest.raises(DataError, match=r"'test-5' has the golds \['Q5'\] in one and \['Q77'\]"):
        compare([first], [open_finished(path).predictions])
