"""``mimic-pl train-reranker``: from a run to a cross-encoder with the shipped recipe."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import BertConfig, BertModel

from mimic_pl import Ranker, load_run
from mimic_pl.encoders.wordpiece import build_tokenizer
from mimic_pl.links import Link, Links
from mimic_pl.retrieval import CrossEncoder, rerank
from tests import tiny

RECIPE = Path(__file__).parents[2] / "cli_configs" / "recipes" / "cross_encoder.yaml"


@pytest.fixture(scope="module")
def text_model(tmp_path_factory) -> str:
    """A small text model in place of the one that the recipe would download."""
    folder = tmp_path_factory.mktemp("text_model")
    tokenizer = build_tokenizer(tiny.WORDS)
    tokenizer.save_pretrained(folder)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def options(text_model) -> list[str]:
    own = ["--config", str(RECIPE), "--model.cross_encoder.pretrained", text_model, "--model.cross_encoder.top_k", "5"]
    return [*own, "--trainer.accelerator", "cpu", "--trainer.precision", "32-true", "--trainer.max_epochs", "1"]


def test_from_a_run_to_reranked_links(command, home, options):
    run = home / "lightning_logs" / "version_0"
    code, out, err = command("train-reranker", *options, folder=home)
    assert code == 0, err
    folder = run / "cross_encoder"
    assert "cross-encoder alone" in out and "CrossEncoder.from_pretrained" in out
    results = json.loads((folder / "results.json").read_text())
    assert set(results) == {"val", "test"}

    # The first stage's metric is that of `mimic-pl test`, as far as the lists reach.
    assert command("test", folder=home)[0] == 0
    tested = json.loads((run / "metrics.json").read_text())["metrics"]["overall"]
    assert results["test"]["first_hits@1"] == pytest.approx(tested["hits@1"])
    assert results["test"]["first_hits@3"] == pytest.approx(tested["hits@3"])

    # And the reported one that of links reranked one by one.
    cross_encoder = CrossEncoder.from_pretrained(folder)
    model, data = load_run(run)
    data.setup("test")
    index = model.build_index(data.entities)
    hits = 0
    for mention in data.mentions["test"]:
        ranking = Ranker(5)(model.matcher, model.encode_mentions([mention]), index)
        scores = ranking.top_scores["overall"][0].tolist()
        entities = [data.entities[position] for position in ranking.top_entities[0].tolist()]
        links = Links(mention, tuple(map(Link, entities, scores)))
        hits += rerank(cross_encoder, links)[0].entity.id in mention.golds
    assert results["test"]["hits@1"] == pytest.approx(hits / len(data.mentions["test"]))


def test_lists_are_made_once(command, home, options, monkeypatch):
    assert command("train-reranker", *options, "--output", "second", folder=home)[0] == 0
    made = {path: path.stat().st_mtime_ns for path in (home / "second" / "lists").iterdir()}
    assert {path.name for path in made} == {"train.parquet", "val.parquet", "test.parquet"}
    before = (home / "second" / "model.safetensors").read_bytes()
    assert command("train-reranker", *options, "--output", "second", "--seed_everything", "7")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert (home / "second" / "model.safetensors").read_bytes() != before

    code, _, err = command("train-reranker", *options, "--output", "second", "--model.cross_encoder.top_k", "4")
    assert code == 4 and "made by another first stage, or of another length" in err


def test_the_same_command_gives_the_same_weights(command, home, options):
    for name in ("a", "b"):
        assert command("train-reranker", *options, "--output", name, folder=home)[0] == 0
    weights = [(home / name / "model.safetensors").read_bytes() for name in ("a", "b")]
    assert weights[0] == weights[1]


def test_without_training_the_weights_stay_and_are_evaluated(command, home, options):
    assert command("train-reranker", *options, "--output", "trained", folder=home)[0] == 0
    again = ["--model.cross_encoder.pretrained", "trained", "--trainer.max_epochs", "0", "--output", "again"]
    code, _, err = command("train-reranker", *options, *again, folder=home)
    assert code == 0, err
    before, after = (json.loads((home / name / "results.json").read_text()) for name in ("trained", "again"))
    assert after == {split: pytest.approx(metrics) for split, metrics in before.items()}
    weights = [load_file(home / name / "model.safetensors") for name in ("trained", "again")]
    assert all(torch.equal(weights[0][name], weight) for name, weight in weights[1].items())


def test_training_mentions_are_listed_by_runs_that_left_them_out(command, home, options):
    for fold in ("0", "1"):
        own = ["--config", "tiny.yaml", "--trainer.max_epochs", "1", "--data.left_out_fold", f"[{fold},2]"]
        code, _, err = command("fit", *own, folder=home)
        assert code == 0, err
    folds = [f"lightning_logs/version_{number}" for number in (1, 2)]
    first = ["--run", "lightning_logs/version_0", *options]
    code, _, err = command("train-reranker", *first, "--output", "own", "--fold_runs", f"[{folds[0]}]", folder=home)
    assert code == 3 and "must be left out by one of them" in err
    for name, more in {"own": [], "crossed": ["--fold_runs", f"[{','.join(folds)}]"]}.items():
        code, _, err = command("train-reranker", *first, "--output", name, *more, folder=home)
        assert code == 0, err
    for split in ("val", "test"):
        lists = [(home / name / "lists" / f"{split}.parquet").read_bytes() for name in ("own", "crossed")]
        assert lists[0] == lists[1]

    crossed = pq.read_table(home / "crossed" / "lists" / "train.parquet").to_pydict()
    listed = dict(zip(crossed["mention"], zip(crossed["candidates"], crossed["scores"], strict=True), strict=True))
    seen = 0
    for fold in folds:
        model, data = load_run(home / fold)
        data.setup("fit")
        index = model.build_index(data.entities)
        trained = {mention.id for mention in data.mentions["train"]}
        for mention in (own for own in data.read_mentions("train") if own.id not in trained):
            ranking = Ranker(5)(model.matcher, model.encode_mentions([mention]), index)
            candidates, scores = listed[mention.id]
            assert candidates == index.ids_of(ranking.top_entities[0])
            assert scores == pytest.approx(ranking.top_scores["overall"][0].tolist(), rel=1e-5)
            seen += 1
    assert seen == len(listed)


def test_errors(command, home, options, tmp_path):
    code, _, err = command("train-reranker", *options, folder=tmp_path)
    assert code == 3 and "There is no training run" in err
    code, _, err = command("train-reranker", *options, "--data.train_candidates", "1", folder=home)
    assert code == 3 and "train_candidates" in err
    template = ["--model.cross_encoder.entity_template", "{name}: {desc}"]
    code, _, err = command("train-reranker", *options, *template, folder=home)
    assert code == 3 and "uses ['desc'], which the record" in err


def test_the_recipe():
    text = RECIPE.read_text()
    assert text.startswith("# ") and text.splitlines()[0].endswith(".")
    assert set(yaml.safe_load(text)) == {"trainer", "model", "data"}
