"""The LightningModule through the real Trainer on real files."""

import copy
from functools import partial
from typing import ClassVar

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ReduceLROnPlateau as LightningPlateau
from torch.optim import lr_scheduler
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError, NonFiniteScoreError
from mimic_pl.features import Features
from mimic_pl.losses import UnitConsistentLoss
from mimic_pl.ranking import Ranker
from mimic_pl.units import TGLU, VDLU, GlobalCosine, Matcher
from tests import tiny
from tests.distributed.units import Auxiliary
from tests.reference import ranks_by_sorting
from tests.training import make_trainer

UNITS = {"text": lambda dims: TGLU(dims, 8), "vision": lambda dims: VDLU(dims, 8), "cosine": GlobalCosine}


def make_model(**options):
    seed_everything(0)
    options.setdefault("optimizer", lambda params: torch.optim.AdamW(params, lr=1e-3, eps=1e-4, weight_decay=1e-4))
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS, **options)


def make_data(tiny_set, **options):
    return MELDataModule(str(tiny_set), name="Tiny", **{"batch_size": 8, "num_workers": 0, **options})


def all_scores(model, data):
    """Scores of all test mentions with all entities from features, without the index or the engine."""
    model.eval()
    with torch.no_grad():
        sides = {}
        for side, loader in (("mentions", data.test_dataloader()), ("entities", data.entity_dataloader())):
            batches = [data.on_after_batch_transfer(copy.deepcopy(b), 0)[side] for b in loader]
            sides[side] = Features.joined(model.encode(batch) for batch in batches)
        return model.score(model.matcher.mention(sides["mentions"]), model.matcher.entity(sides["entities"]))


def test_training_lowers_the_loss_and_raises_mrr(tiny_set, tmp_path):
    model, data = make_model(), make_data(tiny_set)
    trainer = make_trainer(tmp_path, max_epochs=25, check_val_every_n_epoch=25)
    before = trainer.validate(model, data, verbose=False)[0]
    trainer.fit(model, data)
    after = trainer.callback_metrics
    assert after["train/loss_epoch"] < 0.7 * 4 * torch.tensor(8.0).log()
    assert after["val/mrr"] > before["val/mrr"] + 0.1


def test_overfit_batches_repeats_one_batch(tiny_set, tmp_path):
    class Seen(Callback):
        batches: ClassVar[list] = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.batches.append(batch["index"].tolist())

    make_trainer(tmp_path, Seen(), overfit_batches=1, max_epochs=3).fit(make_model(), make_data(tiny_set))
    assert Seen.batches == [list(range(8))] * 3


@pytest.mark.parametrize("pairs_per_block", [3, 10_000])
def test_test_ranks_over_the_whole_knowledge_base(tiny_set, tmp_path, pairs_per_block):
    """Metrics, ranks and top entities equal those from sorting the full score matrix."""
    model, data = make_model(ranker=Ranker(top_k=4, pairs_per_block=pairs_per_block)), make_data(tiny_set)
    outputs = []
    model.on_test_batch_end = lambda output, *_: outputs.append(output)
    metrics = make_trainer(tmp_path).test(model, data, verbose=False)[0]

    scores = all_scores(model, data)
    position = {entity.id: i for i, entity in enumerate(data.entities)}
    golds = [[position[gold] for gold in mention.golds] for mention in data.mentions["test"]]
    for name, prefix in (("overall", "test/"), ("text", "test/text/"), ("vision", "test/vision/")):
        ranks = ranks_by_sorting(scores[name], golds)
        assert [r for o in outputs for r in o["ranking"].ranks[name].tolist()] == ranks
        for k in (1, 3, 5, 10, 20):
            assert metrics[f"{prefix}hits@{k}"] == pytest.approx(sum(r <= k for r in ranks) / len(ranks))
        assert metrics[f"{prefix}mrr"] == pytest.approx(sum(1 / r for r in ranks) / len(ranks))
        assert metrics[f"{prefix}mr"] == pytest.approx(sum(ranks) / len(ranks))
    top = torch.cat([o["ranking"].top_entities for o in outputs])
    torch.testing.assert_close(scores["overall"].gather(1, top), scores["overall"].topk(4).values)
    assert model.index is None, "the index is released"


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_weights_of_an_uninterrupted_one(tiny_set, tmp_path):
    """Shuffling, random images, dropout and optimizer state resume, with any number of loader workers."""

    def fit(folder, epochs, ckpt_path=None, seed=7, num_workers=0):
        seed_everything(seed)
        model = MIMIC(CLIPEncoder(**{**tiny.ENCODER, "config": with_dropout()}), units=UNITS)
        model.optimizer = lambda params: torch.optim.AdamW(params, lr=1e-3)
        checkpoint = ModelCheckpoint(folder, monitor="val/mrr", mode="max", save_last=True)
        trainer = make_trainer(folder, checkpoint, max_epochs=epochs, enable_checkpointing=True)
        trainer.fit(model, make_data(tiny_set, num_workers=num_workers), ckpt_path=ckpt_path)
        return model.state_dict()

    def with_dropout():
        sizes = copy.deepcopy(tiny.ENCODER["config"])
        sizes["text_config"]["attention_dropout"] = 0.2
        return sizes

    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "part", 2)
    resumed = fit(tmp_path / "part", 4, ckpt_path=tmp_path / "part" / "last.ckpt", num_workers=2)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    other = fit(tmp_path / "other", 4, seed=8)
    assert not all(torch.equal(whole[name], other[name]) for name in whole), "the seed matters here"


def test_another_matcher_changes_training_and_ranking_alike(tiny_set, tmp_path):
    class OnlyVision(Matcher):
        def combine(self, scores):
            return scores["vision"]

    class Model(MIMIC):
        def configure_matcher(self, units):
            return OnlyVision(self.encoder.dims, units)

    seed_everything(0)
    model, data = Model(CLIPEncoder(**tiny.ENCODER), units=UNITS), make_data(tiny_set)
    trainer = make_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, data)
    assert trainer.callback_metrics["train/loss_overall"] == trainer.callback_metrics["train/loss_vision"]
    metrics = trainer.test(model, data, verbose=False)[0]
    assert metrics["test/mrr"] == metrics["test/vision/mrr"] != metrics["test/text/mrr"]


def test_weight_decay_exempts_what_the_published_rule_names():
    model = make_model()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, exempt = ({names[id(p)] for p in group["params"]} for group in model.parameter_groups())
    assert "matcher.units.text.norm.weight" in decayed, "norms not called LayerNorm decay in the published model"
    assert "encoder.clip.text_model.final_layer_norm.weight" in decayed
    assert "matcher.units.text.query.bias" in exempt
    assert decayed | exempt == set(names.values()) - {"encoder.clip.logit_scale"}
    assert not decayed & exempt


def test_published_optimizer_settings_are_the_default():
    groups = MIMIC(CLIPEncoder(**tiny.ENCODER)).configure_optimizers().param_groups
    assert [(g["lr"], g["eps"], g["betas"], g["weight_decay"]) for g in groups] == [
        (1e-5, 1e-4, (0.9, 0.999), 1e-4),
        (1e-5, 1e-4, (0.9, 0.999), 0.0),
    ]


def test_a_scheduler_is_stepped_each_epoch(tiny_set, tmp_path):
    model = make_model(lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5))
    trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    trainer.fit(model, make_data(tiny_set))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 / 8)


BY_STEP = {
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=50), {}),
    "cyclic": (lambda o: lr_scheduler.CyclicLR(o, 0.001, 0.01), {}),
    "warm-up of transformers": (lambda o: get_linear_schedule_with_warmup(o, 2, 20), {}),
    "cosine with warm-up": (lambda o: get_cosine_schedule_with_warmup(o, 2, 20), {}),
    "a sequence with one cycle": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.ConstantLR(o), lr_scheduler.OneCycleLR(o, 0.01, total_steps=50)], [2]
        ),
        {},
    ),
    "asked for": (lambda o: lr_scheduler.CosineAnnealingLR(o, 9), {"lr_interval": "step"}),
}
BY_EPOCH = {
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 9), {}),
    "a function of the epoch": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: 0.5**epoch), {}),
    "asked for": (lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=50), {"lr_interval": "epoch"}),
}


@pytest.mark.parametrize(
    ("make", "options", "interval"),
    [(*case, "step") for case in BY_STEP.values()] + [(*case, "epoch") for case in BY_EPOCH.values()],
    ids=[*(f"step: {name}" for name in BY_STEP), *(f"epoch: {name}" for name in BY_EPOCH)],
)
def test_how_often_a_scheduler_is_stepped(tiny_set, tmp_path, make, options, interval):
    model = make_model(lr_scheduler=make, **options)
    trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0, accumulate_grad_batches=2)
    trainer.fit(model, make_data(tiny_set))
    assert trainer.global_step == 6  # two for the three batches of an epoch
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.last_epoch == (trainer.global_step if interval == "step" else 3)


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("with_monitor", [True, False])
def test_plateaus_of_a_metric(tiny_set, tmp_path, mode, every, with_monitor):
    """A threshold that nothing passes: each look after the first one halves the learning rate."""
    kind = partial(LightningPlateau, monitor="val/mr") if with_monitor else lr_scheduler.ReduceLROnPlateau
    make = lambda o: kind(o, mode=mode, factor=0.5, patience=0, threshold=1e9, threshold_mode="abs")  # noqa: E731
    model = make_model(lr_scheduler=make)
    trainer = make_trainer(tmp_path, max_epochs=4, check_val_every_n_epoch=every)
    trainer.fit(model, make_data(tiny_set))
    (config,) = trainer.lr_scheduler_configs
    followed = "val/mr" if with_monitor else {"max": "val/mrr", "min": "train/loss_epoch"}[mode]
    looks = 4 // every if followed.startswith("val/") else 4
    assert config.monitor == followed
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3 * 0.5 ** (looks - 1))


class Relative(GlobalCosine):
    """A unit whose scores are relative to those of the other entities scored at once."""

    def score(self, mentions, entities):
        return super().score(mentions, entities).log_softmax(dim=1)


class RelativeMatcher(Matcher):
    """Normalises over the mentions scored at once."""

    def combine(self, scores):
        total = super().combine(scores)
        return total - total.mean(dim=0, keepdim=True)


@pytest.mark.parametrize("stage", ["validate", "test"])
@pytest.mark.parametrize(
    ("options", "name"),
    [({"units": {**UNITS, "own": Relative}}, "'own' of Relative"), ({"matcher": RelativeMatcher}, "'overall' of Rel")],
    ids=["unit", "matcher"],
)
def test_scores_that_depend_on_the_block_cannot_be_ranked(tiny_set, tmp_path, options, name, stage):
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), **{"units": UNITS, **options})
    with pytest.raises(ConfigError, match=f"The score {name}.*must depend on its pair alone.*check_unit"):
        getattr(make_trainer(tmp_path), stage)(model, make_data(tiny_set))


def test_a_scheduler_for_fewer_steps_says_how_many_there_are(tiny_set, tmp_path):
    model = make_model(lr_scheduler=lambda o: lr_scheduler.OneCycleLR(o, 0.01, total_steps=4))
    trainer = make_trainer(tmp_path, max_epochs=3, limit_val_batches=0)
    with pytest.raises(ConfigError, match=r"OneCycleLR cannot be stepped further: .*9 optimizer steps in 3 epochs"):
        trainer.fit(model, make_data(tiny_set))


def test_every_parameter_of_the_default_model_gets_a_gradient(tiny_set, tmp_path):
    """DDP needs a gradient for every parameter that requires one."""
    model, data = MIMIC(CLIPEncoder(**tiny.ENCODER)), make_data(tiny_set)
    data.processor = model.processor
    data.setup("fit")
    batch = data.on_after_batch_transfer(next(iter(data.train_dataloader())), 0)
    model.log = model.log_dict = lambda *args, **kwargs: None  # there is no Trainer to log to
    model.training_step(batch, 0).backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []


def test_nan_scores_of_a_diverged_model_name_the_mention(tiny_set, tmp_path):
    model, data = make_model(), make_data(tiny_set)
    with torch.no_grad():
        model.matcher.units["vision"].mention_to_entity.norm.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteScoreError, match=r"'overall' score of mention 'test-0' .* entity Q0 .* nan"):
        make_trainer(tmp_path).test(model, data, verbose=False)


def test_loaders_without_a_data_module_are_rejected(tiny_set, tmp_path):
    model, data = make_model(), make_data(tiny_set)
    data.processor = model.processor
    data.setup("test")
    with pytest.raises(ConfigError, match="data module"):
        make_trainer(tmp_path).test(model, dataloaders=data.test_dataloader(), verbose=False)


def test_evaluation_in_half_precision_still_ranks_float32_scores(tiny_set, tmp_path):
    model, data = make_model(), make_data(tiny_set)
    outputs = []
    model.on_test_batch_end = lambda output, *_: outputs.append(output)
    make_trainer(tmp_path, precision="bf16-mixed").test(model, data, verbose=False)
    scores = outputs[0]["ranking"].top_scores["overall"]
    assert scores.dtype == torch.float32
    assert not torch.equal(scores, scores.bfloat16().float()), "not rounded to bfloat16"


def test_a_unit_may_have_its_own_loss(tiny_set, tmp_path):
    model = make_model()
    model.matcher = Matcher(model.encoder.dims, {**UNITS, "auxiliary": Auxiliary})
    before = model.matcher.units["auxiliary"].head.weight.clone()
    trainer = make_trainer(tmp_path, max_epochs=1, limit_train_batches=1)
    trainer.fit(model, make_data(tiny_set))
    logged = trainer.callback_metrics
    assert not torch.equal(model.matcher.units["auxiliary"].head.weight, before), "it is trained"
    names = ("overall", *UNITS, "auxiliary", "auxiliary_own")
    total = sum(logged[f"train/loss_{name}"] for name in names)
    torch.testing.assert_close(logged["train/loss_epoch"], total)


def test_loss_options_reach_training(tiny_set, tmp_path):
    """A weight of zero removes the loss of a unit, which the overall loss still trains."""
    model = make_model(losses={"contrastive": UnitConsistentLoss(weights={"text": 0.0})})
    trainer = make_trainer(tmp_path, max_epochs=1, limit_val_batches=0)
    trainer.fit(model, make_data(tiny_set))
    logged = set(trainer.callback_metrics)
    assert {"train/loss_overall", "train/loss_vision", "train/loss_cosine"} <= logged
    assert "train/loss_text" not in logged


def test_losses_with_parts_of_the_same_name_are_all_logged(tiny_set, tmp_path):
    model = make_model(losses={"plain": UnitConsistentLoss(), "sharp": UnitConsistentLoss(temperature=0.1)})
    trainer = make_trainer(tmp_path, max_epochs=1, limit_train_batches=1, limit_val_batches=0)
    trainer.fit(model, make_data(tiny_set))
    logged = trainer.callback_metrics
    names = [f"{prefix}{name}" for prefix in ("", "sharp_") for name in ("overall", *UNITS)]
    torch.testing.assert_close(logged["train/loss_epoch"], sum(logged[f"train/loss_{name}"] for name in names))
