"""``mimic-pl benchmark --quick`` in its own process: every row is measured, and the ranks are correct."""

from __future__ import annotations

import json
import math

import pytest
import torch
import yaml

from mimic_pl.benchmark.settings import DEFAULT_ROWS
from mimic_pl.cli import main
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.model import MIMIC
from tests import tiny
from tests.launch import needs_fork, run_python
from tests.launch import run as run_command
from tests.training import UNITS


@pytest.fixture(scope="module")
def run(tiny_set, tmp_path_factory):
    """Run folder of an untrained model."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "checkpoints").mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(tiny.config(tiny_set, folder)))
    torch.manual_seed(3)
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS)
    torch.save({"state_dict": model.state_dict()}, folder / "checkpoints" / "only.ckpt")
    return folder


@pytest.fixture(scope="module")
def measured(run, tmp_path_factory):
    """The JSON and the output of the complete quick benchmark."""
    output = tmp_path_factory.mktemp("benchmark") / "benchmark.json"
    command = ["-m", "mimic_pl", "benchmark", "--quick", "--run", str(run), "--threads", "1"]
    sizes = ["--inflate", "60", "--batches", "[16,24]"]
    done = run_python([*command, *sizes, "--output", str(output)], output.parent)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(output.read_text()), done.stdout


@needs_fork
def test_only_the_requested_rows_are_measured(tmp_path):
    """In a fork, where everything is imported; the complete benchmark is slow."""
    options = ["--quick", "--rows", "ranking,bytes", "--threads", "1", "--output", "benchmark.json"]
    run_command(["benchmark", *options], tmp_path)
    rows = json.loads((tmp_path / "benchmark.json").read_text())["rows"]
    assert set(rows) == {"ranking", "bytes"}
    checks = rows["ranking"]["checks"]
    assert checks["ranks compared with the published order in float64"] == 4 * 24
    assert checks["differing ranks, every pair scored"] == checks["differing ranks, pruned"] == 0
    assert rows["bytes"]["bytes per entity"]["float32"] == 4 * 4832 + 3 * 8 + 1


@pytest.mark.slow
def test_a_retriever_that_may_find_everything_finds_the_exact_first(measured):
    lines = {line["what"]: line["value"] for line in measured[0]["rows"]["candidates"]["lines"]}
    # 100 candidates per channel of 500 and 1,000 entities, of which the copies are close to their sources.
    assert [lines[f"{count} entities, lance: exact first found"] > 80 for count in ("500", "1,000")] == [True, True]
    assert lines["500 entities, lance: candidates scored"] >= 100
    assert lines["1,000 entities, lance, one of 20 types: exact first found"] == 100  # 50 entities are all scored
    assert 0 <= lines["1,000 entities, lance: links that are certified"] <= 100


@pytest.mark.slow
def test_every_row_has_finite_positive_ratios(measured):
    written, printed = measured
    assert list(written["rows"]) == list(DEFAULT_ROWS)
    for name, row in written["rows"].items():
        ratios = [line["ratio"] for line in row["lines"] if "ratio" in line]
        assert ratios and all(math.isfinite(ratio) and ratio > 0 for ratio in ratios), name
        assert row["title"] in " ".join(printed.split())
    assert written["machine"]["threads"] == 1 and written["machine"]["torch"] == torch.__version__
    assert f"torch {torch.__version__}" in printed


@pytest.mark.slow
@pytest.mark.parametrize(("row", "compared"), [("ranking", 4 * 24), ("trained", 4 * 9)])
def test_ranks_are_those_of_the_literal_scores(measured, row, compared):
    checks = measured[0]["rows"][row]["checks"]
    assert checks["ranks compared with the published order in float64"] == compared
    assert checks["differing ranks, every pair scored"] == checks["differing ranks, pruned"] == 0
    assert checks["ranks compared over the whole knowledge base"] == compared
    assert checks["differing ranks, pruned against every pair scored"] == 0
    assert checks["differing top entities"] == 0


@pytest.mark.slow
def test_a_small_knowledge_base_is_inflated_and_the_output_says_so(measured):
    row = measured[0]["rows"]["trained"]
    assert row["setting"]["entities"] == 60
    assert "12 entities and 48 noisy copies" in row["title"]


@pytest.mark.slow
def test_bytes_per_entity(measured):
    row = measured[0]["rows"]["bytes"]
    # 4,832 values, a state hash for each of three units, and a finiteness flag; int8 vectors have a bfloat16 scale, and
    # int4 tokens one for each 32 values.
    rest = 3 * 8 + 1
    vectors = 1 + 40 + 1 + 3  # TGLU: global, query of 40 tokens, context; VDLU
    assert row["bytes per entity"] == {
        "float32": 4 * 4832 + rest,
        "bfloat16": 2 * 4832 + rest,
        "int8": 4832 + 2 * vectors + rest + 96,  # CMFU has small states, stored as bfloat16
        "int4": 4832 - 3840 // 2 + 2 * (vectors - 40 + 40 * 3) + rest + 96,  # 3 scales for each of 40 tokens
    }
    assert all(line["other"] == 4 * 25_888 for line in row["lines"])


@pytest.mark.slow
def test_overhead_of_the_parts_adds_up(measured):
    row = measured[0]["rows"]["overhead"]
    found = {line["model"]: line for line in row["table"]}
    units, whole = ("text", "vision", "cross_modal"), found["MIMIC"]
    assert whole["bytes / entity"] == 4 * 4832 + 25
    assert found["concatenation alone"]["bytes / entity"] == 4 * (512 + 96) + 9
    norms = 2 * (2 * 512 + 2 * 96)  # of the features, in every matcher
    assert whole["parameters"] - norms == sum(found[f"{unit} alone"]["parameters"] - norms for unit in units)
    for figure in ("FLOPs / mention", "FLOPs / entity", "FLOPs / pair"):
        assert whole[figure] == sum(found[f"{unit} alone"][figure] for unit in units) > 0
        for unit in units:
            assert found[f"without {unit}"][figure] == whole[figure] - found[f"{unit} alone"][figure]
    assert all(line["ms / mention"] > 0 for line in row["table"])
    assert whole["speedup"] == 1
    assert "concatenation alone" in measured[1]


@pytest.mark.slow
def test_gradients_of_both_orders_agree(measured):
    (difference,) = measured[0]["rows"]["training"]["checks"].values()
    assert 0 <= difference < 1e-5


@pytest.mark.slow
def test_the_reference_processor_gives_the_same_images(measured):
    assert all(difference < 1e-5 for difference in measured[0]["rows"]["images"]["checks"].values())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--rows", "ranking,speed"], "speed"),
        (["--mentions", "0"], "--mentions"),
        (["--inflate", "100"], "--run"),
        (["--rows", "bytes", "--output", "nowhere/benchmark.json"], "nowhere"),
        (["--run", "nowhere", "--rows", "trained", "--quick"], "nowhere"),
    ],
)
def test_invalid_options_are_rejected(capsys, arguments, word):
    with pytest.raises(SystemExit) as exit_:
        main(["benchmark", *arguments])
    assert exit_.value.code == 3
    assert word in capsys.readouterr().err
