"""Candidate lists and the training on them: a cross-encoder learns to reorder what the first stage cannot."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mimic_pl.data.table import EntityTable
from mimic_pl.errors import ConfigError, DataError
from mimic_pl.links import Link, Links
from mimic_pl.records import Entity, Mention
from mimic_pl.retrieval import CandidateListData, CandidateLists, CrossEncoder, CrossEncoderModule, rerank
from mimic_pl.retrieval.cross_encoder_module import fit_first_stage_weight, list_loss, reranked_metrics
from mimic_pl.retrieval.list_data import training_lists
from mimic_pl.retrieval.training import results_table, train_cross_encoder
from tests.training import make_trainer

NAMES = ["jaguar", "amazon", "mercury", "phoenix"]
KINDS = {"animal": "runs", "company": "sells", "river": "flows", "planet": "shines"}
WORDS = [*NAMES, *KINDS, *KINDS.values(), "the", "today"]
ENTITIES = EntityTable(
    Entity(f"Q{i}", name, {"attr": kind}) for i, (name, kind) in enumerate(itertools.product(NAMES, KINDS))
)


def lists(count: int, seed: int, k: int = 4) -> CandidateLists:
    """The first stage finds the name, and cannot tell the four kinds apart: their order is random, but for ties."""
    rng = random.Random(seed)
    mentions, order = [], []
    for number in range(count):
        name, (kind, verb) = rng.choice(NAMES), rng.choice(list(KINDS.items()))
        mentions.append(Mention(f"m{number}", name, f"the {name} {verb} today", (_id(name, kind),)))
        order.append(rng.sample([ENTITIES.positions[_id(name, kind)] for kind in KINDS], 4)[:k])
    scores = torch.tensor([[0.3, 0.2, 0.1, 0.0]]).expand(count, -1)[:, :k].contiguous()
    return CandidateLists(mentions, ENTITIES, torch.tensor(order), scores)


def _id(name: str, kind: str) -> str:
    return next(entity.id for entity in ENTITIES if (entity.name, entity.fields["attr"]) == (name, kind))


def new() -> CrossEncoder:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "bert", **sizes, "initializer_range": 0.1, "hidden_dropout_prob": 0.0}
    return CrossEncoder(config=config, vocabulary=WORDS, mention_tokens=10, max_tokens=24)


@pytest.mark.slow
def test_training_learns_to_reorder(tmp_path):
    cross_encoder = new()
    module = CrossEncoderModule(cross_encoder, lambda parameters: torch.optim.AdamW(parameters, lr=1e-3))
    data = CandidateListData({"train": lists(256, 1), "val": lists(64, 2), "test": lists(64, 3)}, cross_encoder)
    saver = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/mrr", mode="max")
    trainer = make_trainer(tmp_path, saver, enable_checkpointing=True, max_epochs=10)
    results = train_cross_encoder(trainer, module, data, tmp_path / "saved")

    assert results["test"]["first_hits@1"] < 0.5, "a quarter by chance"
    assert results["test"]["hits@1"] > 0.95
    assert results["test"]["gain"] == pytest.approx(results["test"]["hits@1"] - results["test"]["first_hits@1"])
    assert results["test"]["first_hits@1"] + results["test"]["gain_low"] > 0.5
    assert "test" in str(results_table(results).columns[0]._cells)

    # What was saved reorders links likewise, through the contract.
    saved = CrossEncoder.from_pretrained(tmp_path / "saved")
    assert saved.first_stage_weight == float(module.alpha)
    unseen = lists(64, 4)
    hits = 0
    for row, mention in enumerate(unseen.mentions):
        candidates = tuple(map(Link, unseen.candidates(row), unseen.scores[row].tolist()))
        hits += rerank(saved, Links(mention, candidates))[0].entity.id in mention.golds
    assert hits > 0.95 * 64


def test_the_results_are_those_of_the_best_epoch(tmp_path):
    """At a learning rate that ruins the model after the first step, the best epoch is not the last one."""
    cross_encoder = new()
    module = CrossEncoderModule(cross_encoder, lambda parameters: torch.optim.SGD(parameters, lr=50.0), warmup=1.0)
    data = CandidateListData({"train": lists(64, 1), "val": lists(64, 2)}, cross_encoder, batch_size=64)
    saver = ModelCheckpoint(tmp_path / "checkpoints", monitor="val/mrr", mode="max")
    trainer = make_trainer(tmp_path, saver, enable_checkpointing=True, max_epochs=4)
    results = train_cross_encoder(trainer, module, data, tmp_path / "saved")
    assert results["val"]["mrr"] == pytest.approx(float(saver.best_model_score))


def test_training_on_nothing_is_refused(tmp_path):
    cross_encoder = new()
    known = lists(4, 1)
    lost = CandidateLists([Mention("m", "jaguar", "", ("Q99",))] * 4, ENTITIES, known.order, known.scores)
    data = CandidateListData({"train": lost, "val": known}, cross_encoder)
    with pytest.raises(DataError, match="No training mention has its gold among the first stage's candidates"):
        make_trainer(tmp_path, max_epochs=1).fit(CrossEncoderModule(cross_encoder), data)


def test_training_needs_a_metric_to_choose_by(tmp_path):
    cross_encoder = new()
    data = CandidateListData({"train": lists(4, 1), "val": lists(4, 2)}, cross_encoder)
    with pytest.raises(ConfigError, match="needs a ModelCheckpoint with a monitor"):
        train_cross_encoder(make_trainer(tmp_path), CrossEncoderModule(cross_encoder), data, tmp_path)


# ---- lists ----------------------------------------------------------------------------------------------------------


def test_lists_on_disk(tmp_path):
    before = lists(20, 5)
    before.write(tmp_path / "deeper" / "train.parquet", "a run")
    after = CandidateLists.read(tmp_path / "deeper" / "train.parquet", "a run", before.mentions, ENTITIES)
    assert torch.equal(after.order, before.order) and torch.equal(after.scores, before.scores)
    assert [path.name for path in (tmp_path / "deeper").iterdir()] == ["train.parquet"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"origin": "another"}, "were made by another first stage"),
        ({"mentions": lists(3, 6).mentions[:2]}, "are not those of these 2 mentions"),
        ({"entities": ENTITIES[:1]}, "is not in the knowledge base, so the lists are of another"),
        ({"content": b"PAR1 nothing"}, "cannot be read"),
        ({"content": None}, "cannot be read"),
    ],
)
def test_lists_that_cannot_be_used_are_refused(tmp_path, arguments, message):
    known, path = lists(3, 6), tmp_path / "val.parquet"
    known.write(path, "a run")
    if "content" in arguments:
        path.unlink()
        if (content := arguments.pop("content")) is not None:
            path.write_bytes(content)
    given = {"origin": "a run", "mentions": known.mentions, "entities": ENTITIES, **arguments}
    with pytest.raises(DataError, match=message) as raised:
        CandidateLists.read(path, **given)
    assert str(path) in str(raised.value) and "Delete the file" in str(raised.value)


def test_golds():
    mentions = [Mention("a", "", "", ("Q1", "Q3")), Mention("b", "", ""), Mention("c", "", "", ("Q77", "Q0"))]
    found = CandidateLists(mentions, ENTITIES, torch.tensor([[3, 2, 1]] * 3), torch.zeros(3, 3)).gold
    assert found.tolist() == [[True, False, True], [False] * 3, [False] * 3]
    nil = CandidateLists(mentions[1:2], ENTITIES, torch.tensor([[3, 2]]), torch.zeros(1, 2))
    assert nil.gold.tolist() == [[False, False]]


@pytest.mark.parametrize("size", [2, 3, 5])
@pytest.mark.parametrize("margin", [None, 0.5])
def test_training_lists_are_those_of_a_loop(size, margin):
    torch.manual_seed(3)
    mentions = [
        Mention(str(i), "", "", tuple(f"Q{q}" for q in random.Random(i).sample(range(16), 2))) for i in range(60)
    ]
    order = torch.stack([torch.randperm(16)[:5] for _ in mentions])
    given = CandidateLists(mentions, ENTITIES, order, torch.rand(60, 5).sort(descending=True).values)
    cross_encoder = new()
    cross_encoder.largest_margin = margin
    rows, columns = training_lists(given, size, cross_encoder.reads(given.scores))
    expected = {}
    for row, mention in enumerate(mentions):
        golds = [c for c in range(5) if f"Q{int(order[row, c])}" in mention.golds]
        wrong = [c for c in range(5) if c not in golds]
        close = margin is None or float(given.scores[row, 0] - given.scores[row, 1]) <= margin
        if golds and close and len(wrong) >= size - 1:
            expected[row] = sorted([golds[0], *wrong[: size - 1]])
    assert dict(zip(rows.tolist(), columns.tolist(), strict=True)) == expected
    assert 0 < len(expected) < 60


def test_batches_of_evaluation_are_whole_lists_in_order():
    cross_encoder = new()
    cross_encoder.top_k = 3
    given = lists(5, 7)
    data = CandidateListData({"val": given}, cross_encoder, batch_size=2)
    batches = list(data.val_dataloader())
    assert [len(batch.scores) for batch in batches] == [2, 2, 1]
    assert torch.equal(torch.cat([batch.scores for batch in batches]), given.scores[:, :3])
    assert torch.equal(torch.cat([batch.gold for batch in batches]), given.gold[:, :3])
    for number, batch in enumerate(batches):
        pairs = [(given.mentions[row], entity) for row in _rows(number) for entity in given.candidates(row)[:3]]
        read = {
            row: [id for id in ids if id != cross_encoder.tokenizer.pad_token_id]
            for rows, inputs in batch.inputs
            for row, ids in zip(rows.tolist(), inputs["input_ids"].tolist(), strict=True)
        }
        assert [read[row] for row in range(len(read))] == cross_encoder.encode(pairs)["input_ids"]


def _rows(batch: int) -> range:
    return range(2 * batch, min(2 * batch + 2, 5))


def test_the_logits_of_lists_are_those_of_their_pairs():
    cross_encoder = new()
    given = lists(4, 7)
    longer = [
        Entity(e.id, e.name, {"attr": e.fields["attr"] + " the" * (number % 9)}) for number, e in enumerate(ENTITIES)
    ]
    given = CandidateLists(given.mentions, EntityTable(longer), given.order, given.scores)
    cross_encoder.largest_margin = 0.15
    given.scores[1, 1:] = 0.0  # not read
    [batch] = CandidateListData({"val": given}, cross_encoder).val_dataloader()
    assert len(batch.inputs) > 1, "pairs of several lengths"
    with torch.no_grad():
        logits = CrossEncoderModule(cross_encoder).logits(batch)
    for row, mention in enumerate(given.mentions):
        expected = cross_encoder.logits([(mention, entity) for entity in given.candidates(row)])
        torch.testing.assert_close(logits[row], torch.zeros(4) if row == 1 else expected)


def test_lists_beyond_the_margin_keep_the_first_order(tmp_path):
    """The module's figures of lists of which some are read are those of links, and of a loop."""
    cross_encoder = new()
    given = lists(40, 8)
    margins = [0.1, 0.5, 0.6, 0.7, 0.8, 0.9]  # every sixth is read; in some batches none is
    second = given.scores[:, 0] - torch.tensor([margins[row % 6] for row in range(40)])
    given.scores[:, 1:] = second[:, None] - torch.tensor([0.0, 0.1, 0.2])
    cross_encoder.largest_margin = 0.3
    module = CrossEncoderModule(cross_encoder)
    data = CandidateListData({"val": given}, cross_encoder, batch_size=2)
    assert {bool(batch.inputs) for batch in data.val_dataloader()} == {False, True}
    trainer = make_trainer(tmp_path)
    trainer.validate(module, data, verbose=False)
    reranker, hits = module.trained(), []
    assert reranker.first_stage_weight != 1.0
    for row, mention in enumerate(given.mentions):
        links = Links(mention, tuple(map(Link, given.candidates(row), given.scores[row].tolist())))
        order = [link.entity.id for link in rerank(reranker, links)]
        if row % 6:
            assert order == [entity.id for entity in given.candidates(row)]
        else:
            reranker.largest_margin = None
            assert order == [link.entity.id for link in rerank(reranker, links)]
            reranker.largest_margin = 0.3
        hits.append(order[0] in mention.golds)
    assert float(trainer.callback_metrics["val/hits@1"]) == pytest.approx(sum(hits) / 40)
    assert hits != given.gold[:, 0].tolist()


# ---- loss, weight, metrics ------------------------------------------------------------------------------------------


def test_the_loss_is_the_cross_entropy_of_the_gold():
    scores = torch.randn(6, 4, generator=torch.Generator().manual_seed(1))
    column = torch.tensor([0, 3, 1, 1, 2, 0])
    one = torch.nn.functional.one_hot(column, 4).bool()
    assert float(list_loss(scores, one)) == pytest.approx(float(torch.nn.functional.cross_entropy(scores, column)))
    two = one | torch.tensor([False, False, False, True])
    by_hand = [
        -math.log(sum(p for p, g in zip(row, own, strict=True) if g))
        for row, own in zip(scores.softmax(1).tolist(), two.tolist(), strict=True)
    ]
    assert float(list_loss(scores, two)) == pytest.approx(sum(by_hand) / 6)


def test_the_weight_is_the_likeliest_of_a_grid():
    generator = torch.Generator().manual_seed(2)
    logits, scores = torch.randn(400, 5, generator=generator), torch.randn(400, 5, generator=generator)
    column = torch.distributions.Categorical(logits=2 * logits + 3 * scores).sample()
    gold = torch.nn.functional.one_hot(column, 5).bool()
    alpha = fit_first_stage_weight(logits, scores, gold)

    def likeliest(weight):
        """Negative log likelihood at the best scale of a grid."""
        combined = logits + weight * scores
        return min(float(list_loss(scale * combined, gold)) for scale in torch.linspace(0.5, 4, 200))

    best = min(torch.linspace(0.2, 4, 96).tolist(), key=likeliest)
    assert alpha == pytest.approx(best, abs=0.05) and 1 < alpha < 2
    assert fit_first_stage_weight(logits, scores, torch.zeros_like(gold)) is None


def test_metrics_are_those_of_a_sort():
    generator = torch.Generator().manual_seed(4)
    scores = torch.randint(3, (50, 6), generator=generator).double()  # many ties
    gold = torch.rand(50, 6, generator=generator) < 0.2
    ranks = []
    for row, own in zip(scores.tolist(), gold.tolist(), strict=True):
        order = sorted(range(6), key=lambda column: (-row[column], column))
        ranks.append(next((rank for rank, column in enumerate(order, 1) if own[column]), math.inf))
    found = reranked_metrics(scores, gold)
    assert float(found["hits@1"]) == pytest.approx(sum(rank == 1 for rank in ranks) / 50)
    assert float(found["hits@3"]) == pytest.approx(sum(rank <= 3 for rank in ranks) / 50)
    assert float(found["mrr"]) == pytest.approx(sum(1 / rank for rank in ranks) / 50)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: CandidateListData({}, new(), train_candidates=1),
            "train_candidates is 1; it must be an integer of at",
        ),
        (lambda: CrossEncoderModule(new(), warmup=2.0), "warmup is 2.0; it must be a finite number from 0 to 1"),
        (lambda: CrossEncoderModule(new(), first_stage_weight=-1.0), "first_stage_weight is -1.0"),
    ],
)
def test_arguments_out_of_range_are_refused(build, message):
    with pytest.raises(ConfigError, match=message):
        build()
