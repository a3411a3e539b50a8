"""Hard negatives are wrong entities that the model ranks high; every batch holds them after its golds."""

import pytest
import torch
from lightning.pytorch import Callback

from mimic_pl import MIMIC, CrossDataModule, MELDataModule
from mimic_pl.callbacks import HardNegatives
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses import UnitConsistentLoss, same_gold
from mimic_pl.units import CMFU, GlobalCosine
from tests import tiny
from tests.reference import random_features
from tests.training import make_trainer

UNITS = {"similarity": GlobalCosine, "cross_modal": lambda dims: CMFU(dims, 8)}


class Recorder(Callback):
    """Records the batches, and before each epoch the scores of the whole knowledge base."""

    def __init__(self):
        self.batches, self.scores = {}, {}

    @torch.no_grad()
    def on_train_epoch_start(self, trainer, pl_module):
        data = trainer.datamodule
        pl_module.eval()
        sides = []
        for side, loader in (("mentions", data.mining_dataloader()), ("entities", data.entity_dataloader())):
            batches = [data.on_after_batch_transfer(batch, 0)[side] for batch in loader]
            sides.append([pl_module.encode(batch) for batch in batches])
        mentions, entities = (parts[0].joined(parts) for parts in sides)
        states = pl_module.matcher.mention(mentions), pl_module.matcher.entity(entities)
        self.scores[trainer.current_epoch] = pl_module.score(*states)["overall"]
        pl_module.train()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        kept = {name: batch[name] for name in ("index", "gold", "columns") if name in batch}
        kept["entities"] = len(batch["entities"]["input_ids"])
        self.batches.setdefault(trainer.current_epoch, []).append(kept)


def parts(tmp_path, **options):
    torch.manual_seed(0)
    root = tmp_path / "set"
    if not root.exists():
        tiny.write_set(root)
    data = MELDataModule(str(root), name="Tiny", batch_size=6, **{"num_workers": 0, **options})
    optimizer = lambda parameters: torch.optim.SGD(parameters, lr=0.05)  # noqa: E731
    losses = {"contrastive": UnitConsistentLoss(mask_false_negatives=True)}
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=UNITS, losses=losses, optimizer=optimizer), data


def trained(tmp_path, callbacks, epochs, resume=None, **options):
    model, data = parts(tmp_path, **options)
    trainer = make_trainer(tmp_path, *callbacks, max_epochs=epochs, limit_val_batches=0)
    trainer.fit(model, data, ckpt_path=resume)
    return trainer, model, data


@pytest.mark.parametrize("num_workers", [0, 2])
def test_batches_hold_entities_that_the_current_model_ranks_too_high(tmp_path, num_workers):
    recorder, depth = Recorder(), 3
    _trainer, _, data = trained(tmp_path, [recorder, HardNegatives(depth)], 3, num_workers=num_workers)
    golds = [data.entities.positions[mention.golds[0]] for mention in data.mentions["train"]]
    assert all(len(batch["columns"]) == len(batch["gold"]) for batch in recorder.batches[0]), "the first epoch has none"
    for epoch in (1, 2):
        for batch in recorder.batches[epoch]:
            size = len(batch["gold"])
            assert torch.equal(batch["columns"][:size], batch["gold"][:, 0])
            assert len(batch["columns"]) == batch["entities"] == 2 * size
            for index, hard in zip(batch["index"].tolist(), batch["columns"][size:].tolist(), strict=True):
                order = recorder.scores[epoch][index].argsort(descending=True).tolist()
                order.remove(golds[index])
                assert hard in order[:depth], (epoch, index)
    drawn = [
        [c for batch in recorder.batches[e] for c in batch["columns"][len(batch["gold"]) :].tolist()] for e in (1, 2)
    ]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_no_batch_of_the_first_epoch_is_loaded_before_it_is_mined(tmp_path, num_workers):
    """Lightning starts to load batches before the epoch starts."""
    recorder = Recorder()
    trained(tmp_path, [recorder, HardNegatives(first_epoch=0)], 1, num_workers=num_workers)
    batches = recorder.batches[0]
    assert sorted(index for batch in batches for index in batch["index"].tolist()) == list(range(20))
    assert all(len(batch["columns"]) == 2 * len(batch["gold"]) for batch in batches)


def test_the_loss_counts_hard_negatives_unless_they_are_golds():
    scores = {"overall": torch.randn(2, 4, generator=torch.Generator().manual_seed(0))}
    right = same_gold(torch.tensor([[5], [6]]), torch.tensor([5, 6, 6, 9]))
    sides = random_features(2, FeatureDims(3, 3)), random_features(4, FeatureDims(3, 3))
    plain, _ = UnitConsistentLoss()(LossInputs(scores, *sides, right))
    torch.testing.assert_close(plain, torch.nn.functional.cross_entropy(scores["overall"], torch.tensor([0, 1])))
    masked, _ = UnitConsistentLoss(mask_false_negatives=True)(LossInputs(scores, *sides, right))
    left = scores["overall"].clone()
    left[1, 2] = -torch.inf  # entity 6, once more
    torch.testing.assert_close(masked, torch.nn.functional.cross_entropy(left, torch.tensor([0, 1])))


@pytest.mark.slow
def test_a_resumed_run_continues_with_the_mined_negatives(tmp_path):
    whole = trained(tmp_path, [HardNegatives(every_n_epochs=2)], 4)[1]
    trainer, _, _ = trained(tmp_path, [HardNegatives(every_n_epochs=2)], 2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    _, resumed, _ = trained(tmp_path, [HardNegatives(every_n_epochs=2)], 4, resume=tmp_path / "two.ckpt")
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_mining_several_knowledge_bases_is_rejected(tmp_path):
    model, data = parts(tmp_path)
    tiny.write_set(tmp_path / "other")
    cross = CrossDataModule([data], MELDataModule(str(tmp_path / "other"), name="Tiny"))
    trainer = make_trainer(tmp_path, HardNegatives(), max_epochs=1)
    with pytest.raises(ConfigError, match="with a single knowledge base"):
        trainer.fit(model, cross)


def test_resuming_with_another_depth_is_rejected(tmp_path):
    trainer, _, _ = trained(tmp_path, [HardNegatives(3)], 1)
    trainer.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ConfigError, match="Resume with the data and the depth"):
        trained(tmp_path, [HardNegatives(4)], 2, resume=tmp_path / "one.ckpt")
