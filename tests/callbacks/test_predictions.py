"""The files that test and predict write, against brute-force rankings."""

from __future__ import annotations

import json

import pytest

from mimic_pl.callbacks import PredictionWriter
from mimic_pl.errors import ConfigError
from tests.reference import ranking
from tests.results import read_jsonl


def test_predictions_equal_the_ranking(make_trainer, given_scores, records, tmp_path):
    model = given_scores()
    make_trainer(PredictionWriter(top_k=3)).test(model, records, verbose=False)
    lines = read_jsonl(tmp_path / "predictions.jsonl")
    assert [line["id"] for line in lines] == [mention.id for mention in records.mentions["test"]]
    for index, line in enumerate(lines):
        best = ranking(model.scores["overall"][index])[:3]
        assert [c["qid"] for c in line["candidates"]] == [f"Q{entity}" for entity in best]
        assert [c["name"] for c in line["candidates"]] == [f"entity {entity}" for entity in best]
        for name in ("overall", "text"):
            assert [c["scores"][name] for c in line["candidates"]] == [model.scores[name][index][e] for e in best]
            gold = index % 8
            in_order = ranking(model.scores[name][index]).index(gold) + 1
            assert line["rank"][name] == (None if index == 4 else in_order)
    assert lines[3]["golds"] == [{"qid": "Q3", "name": "entity 3"}]
    assert lines[4]["golds"] == [{"qid": "Q99", "name": None}]  # not in the knowledge base


def test_metrics_follow_from_the_written_ranks(make_trainer, given_scores, records, tmp_path):
    make_trainer(PredictionWriter(top_k=1)).test(given_scores(), records, verbose=False)
    summary = json.loads((tmp_path / "metrics.json").read_text())
    lines = read_jsonl(tmp_path / "predictions.jsonl")
    assert (summary["mentions"], summary["mentions_without_gold_in_kb"], summary["entities"]) == (11, 1, 8)
    assert list(summary["metrics"]) == ["overall", "text"]
    for name, metrics in summary["metrics"].items():
        ranks = [line["rank"][name] for line in lines]
        assert metrics["mrr"] == pytest.approx(sum(1 / r for r in ranks if r) / 11, abs=1e-6)
        assert metrics["hits@3"] == pytest.approx(sum(r is not None and r <= 3 for r in ranks) / 11, abs=1e-6)
        assert metrics["mr"] == pytest.approx(sum(r or 9 for r in ranks) / 11, abs=1e-6)
        assert list(metrics) == ["hits@1", "hits@3", "hits@5", "hits@10", "hits@20", "mrr", "mr"]


def test_predict_writes_links_without_golds(make_trainer, given_scores, records, tmp_path):
    make_trainer(PredictionWriter(top_k=2)).predict(given_scores(), records, return_predictions=False)
    lines = read_jsonl(tmp_path / "links.jsonl")
    assert [line["id"] for line in lines] == [f"predict-{i}" for i in range(11)]
    assert set(lines[0]) == {"id", "mention", "sentence", "candidates"}
    assert all(len(line["candidates"]) == 2 for line in lines)
    assert not (tmp_path / "metrics.json").exists()


def test_two_processes_write_every_mention_once(make_trainer, given_scores, records, tmp_path):
    """Eleven mentions on two processes: the sampler repeats one."""
    make_trainer(PredictionWriter()).test(given_scores(kept=8), records, verbose=False)
    expected = read_jsonl(tmp_path / "predictions.jsonl")
    folder = tmp_path / "two"
    trainer = make_trainer(PredictionWriter(), default_root_dir=folder, devices=2, strategy="ddp_fork")
    trainer.test(given_scores(kept=8), records, verbose=False)
    assert read_jsonl(folder / "predictions.jsonl") == expected
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "predictions.jsonl"]


def test_a_failure_keeps_the_previous_file_and_leaves_no_partial_files(make_trainer, given_scores, records, tmp_path):
    make_trainer(PredictionWriter(top_k=2)).test(given_scores(), records, verbose=False)
    previous = (tmp_path / "predictions.jsonl").read_bytes()
    with pytest.raises(RuntimeError, match="interrupted"):
        make_trainer(PredictionWriter(top_k=3)).test(given_scores(fail_at=6), records, verbose=False)
    assert (tmp_path / "predictions.jsonl").read_bytes() == previous
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.jsonl"]


def test_more_candidates_than_the_model_keeps(make_trainer, given_scores, records):
    with pytest.raises(ConfigError, match=r"keeps only 5 candidates.*--model.ranker.top_k 6"):
        make_trainer(PredictionWriter(top_k=6)).test(given_scores(kept=5), records, verbose=False)


def test_a_knowledge_base_smaller_than_top_k(make_trainer, given_scores, records, tmp_path):
    make_trainer(PredictionWriter(top_k=50)).test(given_scores(kept=8), records, verbose=False)
    assert {len(line["candidates"]) for line in read_jsonl(tmp_path / "predictions.jsonl")} == {8}


def test_fast_dev_run_writes_nothing(make_trainer, given_scores, records, tmp_path):
    make_trainer(PredictionWriter(), fast_dev_run=True).test(given_scores(kept=8), records, verbose=False)
    assert list(tmp_path.rglob("*.json*")) == []
