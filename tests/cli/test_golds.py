"""Results of `test` with several golds and golds not seen in training, in one process and in two."""

import json
import shutil

import pytest

from tests.results import read_jsonl


@pytest.fixture
def home(home, trained):
    """The trained run, and a copy of its data whose test split has several golds and unseen golds."""
    shutil.copytree(trained.root, home / "set")
    rows = json.loads((home / "set" / "Tiny_train.json").read_text())
    for row in rows:
        row["answer"] = row["answer"] if row["answer"] in ("Q7", "Q8", "Q11") else "nil"
    (home / "set" / "Tiny_train.json").write_text(json.dumps(rows))
    rows = json.loads((home / "set" / "Tiny_test.json").read_text())
    rows[0]["answer"], rows[3]["answer"], rows[4]["answer"] = ["Q3", "Q8", "Q1"], ["Q7", "Q99"], "nil"
    (home / "set" / "Tiny_test.json").write_text(json.dumps(rows))
    return home


def results(home):
    run = home / "lightning_logs" / "version_0"
    return json.loads((run / "metrics.json").read_text()), read_jsonl(run / "predictions.jsonl")


def test_seen_and_unseen_golds_are_reported_separately(command, home, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    options = ["--data.root", str(home / "set"), "--model.ranker.top_k", "12", "--predictions.top_k", "12"]
    code, out, _ = command("test", *options, folder=home)
    assert code == 0
    summary, lines = results(home)
    train = json.loads((home / "set" / "Tiny_train.json").read_text())
    trained_on = {row["answer"] for row in train} - {"nil"}
    groups = {
        "seen": [line for line in lines if trained_on & {gold["qid"] for gold in line["golds"]}],
        "unseen": [line for line in lines if line["golds"] and not trained_on & {g["qid"] for g in line["golds"]}],
    }
    assert list(summary["subsets"]) == list(groups) and all(groups.values())
    assert list(summary["metrics"]) == ["overall", "cross_modal", "text", "vision"]
    for name, members in groups.items():
        subset, ranks = summary["subsets"][name], [line["rank"]["overall"] for line in members]
        assert subset["mentions"] == len(members)
        assert subset["metrics"]["mrr"] == pytest.approx(sum(1 / rank for rank in ranks) / len(ranks), abs=1e-6)
        assert subset["metrics"]["hits@3"] == pytest.approx(sum(rank <= 3 for rank in ranks) / len(ranks), abs=1e-6)
        assert f" {name} ({len(members)}) " in out

    # Recall, computed from the predictions, which hold the complete ranking of twelve entities.
    for k in (1, 3, 5, 10):
        shares = []
        for line in lines:
            best = {candidate["qid"] for candidate in line["candidates"][:k]}
            shares.append(sum(g["qid"] in best for g in line["golds"]) / len(line["golds"]) if line["golds"] else 0)
        assert summary["metrics"]["overall"][f"recall@{k}"] == pytest.approx(sum(shares) / 9, abs=1e-6)
    assert "recall over all golds of a mention" in out and "R@10" in out

    assert command("test", *options, "--trainer.devices", "2", "--trainer.strategy", "ddp_fork")[0] == 0
    assert results(home) == (summary, lines)


def test_no_subsets_or_recall_with_single_seen_golds(command, trained, tmp_path):
    shutil.copytree(trained.home, tmp_path / "home")
    shutil.copytree(trained.root, tmp_path / "set")
    rows = json.loads((tmp_path / "set" / "Tiny_test.json").read_text())
    (tmp_path / "set" / "Tiny_train.json").write_text(json.dumps(rows))
    assert command("test", "--data.root", str(tmp_path / "set"), folder=tmp_path / "home")[0] == 0
    summary, _ = results(tmp_path / "home")
    assert "subsets" not in summary
    assert not any(name.startswith("recall") for name in summary["metrics"]["overall"])
