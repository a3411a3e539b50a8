"""Mentions that experiments do not agree on: which are chosen, and what the figure shows of them."""

from __future__ import annotations

import itertools
import json
import shutil

import numpy as np
import pytest
import yaml
from PIL import Image

from mimic_pl.cli import main
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.escaping import shortened
from mimic_pl.report import group_runs, open_finished, write_report
from mimic_pl.report.disagreements import Disagreement, disagreements_figure, find_disagreements
from mimic_pl.runs import load_data
from tests.report.conftest import write_run
from tests.results import read_jsonl

LR = "model.init_args.optimizer.init_args.lr"


def experiments_of(tmp_path, *ranks):
    """An experiment for each list of ranks."""
    folders = [
        write_run(tmp_path / f"e{number}" / "version_0", own, changes={LR: number + 1.0})
        for number, own in enumerate(ranks)
    ]
    return group_runs([open_finished(folder) for folder in folders])


def pattern(ranks, mention):
    return tuple(own[mention] == 1 for own in ranks)


def test_only_mentions_that_some_link_correctly_and_others_do_not_are_chosen(tmp_path):
    ranks = [[1, 1, 5, None, 1, 3], [1, 2, 1, None, None, 2]]
    experiments = experiments_of(tmp_path, *ranks)
    found = find_disagreements(experiments, 10)
    assert sorted(d.index for d in found) == [1, 2, 4]
    for disagreement in found:
        assert disagreement.right == pattern(ranks, disagreement.index)
        assert [record["id"] for record in disagreement.records] == [f"test-{disagreement.index}"] * 2
    assert find_disagreements(experiments[:1], 10) == []


def test_groups_take_turns_and_mentions_are_spread_over_the_split(tmp_path):
    rng = np.random.default_rng(3)
    ranks = [[int(rank) for rank in rng.integers(1, 3, 200)] for _ in range(3)]
    sizes = {
        own: sum(pattern(ranks, mention) == own for mention in range(200))
        for own in itertools.product((False, True), repeat=3)
        if len(set(own)) > 1
    }
    found = find_disagreements(experiments_of(tmp_path, *ranks), 15)
    groups = [(right, [d.index for d in own]) for right, own in itertools.groupby(found, lambda d: d.right)]
    by_size = sorted(sizes, key=lambda own: -sizes[own])
    assert [sizes[right] for right, _ in groups] == [sizes[own] for own in by_size]
    # 15 mentions for six groups: the three largest give a third one
    assert [len(indices) for _, indices in groups] == [3, 3, 3, 2, 2, 2]
    for right, indices in groups:
        assert indices == sorted(set(indices))
        everything = [mention for mention in range(200) if pattern(ranks, mention) == right]
        assert indices[0] == everything[0] and indices[1] >= everything[len(everything) // 3]
    assert len(find_disagreements(experiments_of(tmp_path / "all", *ranks), 1000)) == sum(sizes.values())


def test_runs_on_other_mentions_are_refused(tmp_path):
    with pytest.raises(DataError, match="e1 was tested on other mentions than e0"):
        find_disagreements(experiments_of(tmp_path, [1, 2], [1, 2, 1]), 10)


@pytest.fixture
def pair(malicious_run, tmp_path):
    """A real run, and a second one that ranks the gold of every other mention first."""
    other = tmp_path / "other" / "version_0"
    shutil.copytree(malicious_run, other)
    (other / "config.yaml").write_text((other / "config.yaml").read_text().replace("lr: ", "lr: 1"))
    summary = json.loads((other / "metrics.json").read_text())
    del summary["predictions_sha256"]
    (other / "metrics.json").write_text(json.dumps(summary))
    records = read_jsonl(other / "predictions.jsonl")
    for record in records[::2]:
        record["rank"]["overall"] = 1
        record["candidates"][0] |= record["golds"][0]
    (other / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return malicious_run, other


def test_the_figure_shows_mention_gold_and_each_first_candidate(pair):
    experiments = group_runs([open_finished(run) for run in pair])
    assert len(experiments) == 2
    data = load_data(pair[0]).ranked
    chosen = find_disagreements(experiments, 3)
    figure = disagreements_figure(experiments, data, chosen)
    rows = np.array(figure.axes).reshape(len(chosen), 5)
    mentions = data.split_mentions("test")
    for disagreement, (text, image, gold, *firsts) in zip(chosen, rows, strict=True):
        mention = mentions[disagreement.index]
        assert text.texts[0].get_text() == shortened(mention.mention, 34)
        assert "".join(text.texts[1].get_text().split()) == "".join(shortened(mention.sentence, 180).split())
        small = data.mention_image(mention).convert("RGB")
        small.thumbnail((160, 160))
        np.testing.assert_array_equal(image.get_images()[0].get_array(), np.asarray(small))
        assert gold.get_xlabel().startswith(data.entities[data.entities.positions[mention.golds[0]]].name[:10])
        for axis, record in zip(firsts, disagreement.records, strict=True):
            first = record["candidates"][0]
            assert axis.get_xlabel().startswith(first["name"][:10])
            rank = record["rank"]["overall"]
            assert axis.get_title().endswith("right" if rank == 1 else f"gold: rank {rank}")
            assert len(axis.get_images()) == (
                data.entity_image(data.entities[data.entities.positions[first["qid"]]]) is not None
            )


def test_the_command_adds_the_figure_to_the_report(pair, tmp_path, capsys):
    main(["report", *map(str, pair), "--disagreements", "2", "--output", str(tmp_path / "out")])
    image = Image.open(tmp_path / "out" / "disagreements_Tiny.png")
    assert image.mode == "RGB" and image.height > 200
    assert "(disagreements_Tiny.png)" in (tmp_path / "out" / "report.md").read_text()
    assert "disagreements_Tiny.png" in capsys.readouterr().out


def test_a_changed_split_is_refused(pair):
    experiments = group_runs([open_finished(run) for run in pair])
    data = load_data(pair[0]).ranked
    (chosen, *_) = find_disagreements(experiments, 1)
    moved = Disagreement(chosen.index + 1, chosen.records)
    with pytest.raises(DataError, match="Test the runs again"):
        disagreements_figure(experiments, data, [moved])


def test_data_that_is_not_there_is_named(pair, tmp_path):
    moved = [tmp_path / "moved" / str(number) for number in range(2)]
    for run, folder in zip(pair, moved, strict=True):
        shutil.copytree(run, folder)
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["data"]["init_args"]["root"] = "sets/gone"
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ConfigError, match="'sets/gone' does not exist .looked in /.*run the command in the folder"):
        write_report([open_finished(run) for run in moved], tmp_path / "out", disagreements=1)


def test_a_single_experiment_or_no_mention_is_refused(malicious_run, pair, tmp_path):
    alone, both = ([open_finished(run) for run in runs] for runs in ([malicious_run], pair))
    with pytest.raises(ConfigError, match="there is only one"):
        write_report(alone, tmp_path / "out", disagreements=3)
    with pytest.raises(ConfigError, match="disagreements"):
        write_report(both, tmp_path / "out", disagreements=0)
    assert not (tmp_path / "out").exists()
