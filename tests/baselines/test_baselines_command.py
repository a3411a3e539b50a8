"""``mimic-pl baselines`` on a tiny set: what it prints and writes."""

from __future__ import annotations

import json

import pytest
import yaml

from mimic_pl.cli import main
from mimic_pl.files import acquire_lock
from tests import tiny
from tests.results import read_jsonl


@pytest.fixture(scope="module")
def config(tiny_set, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny.config(tiny_set, folder)))
    return path


def run(capsys, *args):
    """Exit code, stdout, stderr."""
    code = 0
    try:
        main(["baselines", *map(str, args)])
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_all_baselines_from_a_configuration(config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, "--config", config, "--top_k", "3", "--device", "cpu")
    assert code == 0, err
    folder = tmp_path / "baselines" / "Tiny"
    results = json.loads((folder / "baselines.json").read_text())
    names = ["exact_name", "name_similarity", "bm25", "text_cosine", "image_cosine", "both_cosines"]
    assert list(results["baselines"]) == names and all(name in out for name in names)
    # Every mention of the tiny set is the name of its gold, which three entities share: ranks are by position.
    assert results["mentions_that_are_the_golds_name"] == 1.0
    assert "100.0 % of the mentions equal the gold's name" in " ".join(out.split())
    assert results["baselines"]["exact_name"]["hits@3"] == 1.0
    assert (results["mentions_with_image"], results["entities_with_image"]) == (9, 8)

    # The predictions of a tested model have the same fields and mentions.
    main(["test", "--config", str(config), "--trainer.default_root_dir", str(tmp_path)])
    written = read_jsonl(next(tmp_path.glob("lightning_logs/*/predictions.jsonl")))
    summary = json.loads(next(tmp_path.glob("lightning_logs/*/metrics.json")).read_text())
    for name in names:
        lines = read_jsonl(folder / name / "predictions.jsonl")
        assert [list(line) for line in lines] == [list(line) for line in written]
        for key in ("id", "mention", "sentence", "golds"):
            assert [line[key] for line in lines] == [line[key] for line in written]
        assert all(line["rank"].keys() == {"overall"} and len(line["candidates"]) == 3 for line in lines)
        assert list(lines[0]["candidates"][0]) == list(written[0]["candidates"][0]) == ["qid", "name", "scores"]
        ranks = [line["rank"]["overall"] for line in lines]
        for line, rank in zip(lines, ranks, strict=True):
            place = [candidate["qid"] for candidate in line["candidates"]]
            gold = line["golds"][0]["qid"]
            assert (place.index(gold) + 1 if gold in place else rank) == rank
            assert (gold in place) == (rank <= 3)
        metrics = json.loads((folder / name / "metrics.json").read_text())
        assert set(summary) - {"subsets"} <= set(metrics)  # seen and unseen golds need training
        assert metrics["metrics"]["overall"].keys() == summary["metrics"]["overall"].keys()
        assert metrics["metrics"]["overall"]["mrr"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks), abs=1e-6)
        what = results["baselines"][name]["what"]
        assert {"what": what, **metrics["metrics"]["overall"]} == results["baselines"][name]


def test_without_a_model_names_and_text_alone(tiny_set, tmp_path, capsys):
    data = ["--data", "MELDataModule", "--data.root", tiny_set, "--split", "val"]
    code, out, _ = run(capsys, *data, "--output", tmp_path / "here", "--processor.entity_template", "{name}")
    assert code == 0 and "Skipped: text_cosine, image_cosine, both_cosines, which need an encoder" in out
    results = json.loads((tmp_path / "here" / "baselines.json").read_text())
    assert list(results["baselines"]) == ["exact_name", "name_similarity", "bm25"]
    assert (results["split"], results["mentions"], results["entities"]) == ("val", 7, 12)
    # With names alone, the three entities of a name tie in every baseline: ranks are by position.
    by_position = [
        (int(line["golds"][0]["qid"][1:]) % 3) + 1 for line in read_jsonl(tmp_path / "here/bm25/predictions.jsonl")
    ]
    for name in results["baselines"]:
        lines = read_jsonl(tmp_path / "here" / name / "predictions.jsonl")
        assert [line["rank"]["overall"] for line in lines] == by_position


def test_two_commands_do_not_write_into_one_folder(config, tmp_path, capsys):
    lock = acquire_lock(tmp_path / "out", ".baselines.lock")
    code, _, err = run(capsys, "--config", config, "--only", "exact_name", "--output", tmp_path / "out")
    lock.release()
    assert code == 7 and "Another process is writing to" in err


def test_image_cosines_are_skipped_without_images(config, tmp_path, capsys):
    root = tiny.write_set(tmp_path / "Tiny")
    for image in (root / "kb_image").iterdir():
        image.unlink()
    data = ["--data.root", root, "--data.entity_image_folder", "null"]
    given = ["--config", config, *data, "--output", tmp_path / "out"]
    code, out, _ = run(capsys, *given, "--only", "text_cosine,image_cosine")
    assert code == 0 and "Skipped: image_cosine, which need images" in " ".join(out.split())
    assert sorted(path.name for path in (tmp_path / "out").glob("[!.]*")) == ["baselines.json", "text_cosine"]
    code, _, err = run(capsys, *given, "--only", "image_cosine")
    assert code == 3 and "no image" in err


def test_later_configurations_and_options_take_precedence(config, tiny_set, tmp_path, capsys):
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(
        yaml.safe_dump(
            {
                "data": {"init_args": {"name": "Other"}},
                "model": {"init_args": {"processor": {"entity_template": "{name}"}}},
            }
        )
    )
    options = ["--data.name", "Tiny", "--output", tmp_path, "--only", "bm25"]
    code, _, err = run(capsys, "--config", config, "--config", overlay, *options)
    assert code == 0, err
    results = json.loads((tmp_path / "baselines.json").read_text())
    assert list(results["baselines"]) == ["bm25"] and results["text"]["entity"] == "{name}"
    assert results["root"] == str(tiny_set)


def test_a_mention_without_gold_in_the_knowledge_base_is_a_miss(tmp_path, capsys):
    root = tiny.write_set(tmp_path / "Tiny")
    file = root / "Tiny_test.json"
    mentions = json.loads(file.read_text())
    mentions[0]["answer"], mentions[1]["answer"] = "Q99", "nil"
    file.write_text(json.dumps(mentions))
    code, out, _ = run(capsys, "--data", "MELDataModule", "--data.root", root, "--output", tmp_path, "--only", "bm25")
    assert code == 0 and "2 without a gold in the knowledge base count as misses" in " ".join(out.split())
    lines = read_jsonl(tmp_path / "bm25" / "predictions.jsonl")
    assert [line["rank"]["overall"] is None for line in lines] == [True, True, *[False] * 7]
    assert lines[0]["golds"] == [{"qid": "Q99", "name": None}] and lines[1]["golds"] == []
    hits = json.loads((tmp_path / "baselines.json").read_text())["baselines"]["bm25"]["hits@20"]
    assert hits == pytest.approx(7 / 9, abs=1e-6)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--only", "bm25,tfidf"], "tfidf"),
        (["--only", "text_cosine"], "--config"),
        (["--top_k", "0"], "top_k"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--data.root", "nowhere"], "nowhere"),
    ],
)
def test_invalid_options_are_rejected(tiny_set, tmp_path, capsys, options, word):
    data = ["--data", "MELDataModule", "--data.root", tiny_set, "--output", tmp_path / "out"]
    code, _, err = run(capsys, *data, *options)
    assert code == 3 and word in err
    assert not (tmp_path / "out").exists()
