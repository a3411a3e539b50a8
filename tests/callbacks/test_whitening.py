"""Projections that start from a whitening of the features: training starts from the scores of no training."""

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from mimic_pl import MIMIC, MELDataModule
from mimic_pl.callbacks import Whitening
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.errors import ConfigError
from mimic_pl.ranking.stored_states import joined
from mimic_pl.units import GlobalCosine
from tests import tiny
from tests.training import make_trainer

WHITE = {"plain": lambda dims: GlobalCosine(dims, pretrained=True)}
WHITE["white"] = lambda dims: GlobalCosine(dims, scale=1.0, pretrained=True, centered=True, projection=5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tiny.write_set(tmp_path_factory.mktemp("whitening") / "set")


def parts(root, lr, units=WHITE):
    torch.manual_seed(0)
    data = MELDataModule(str(root), name="Tiny", num_workers=0, batch_size=8, eval_batch_size=7)
    return MIMIC(CLIPEncoder(**tiny.ENCODER), units=units, optimizer=lambda p: torch.optim.SGD(p, lr=lr)), data


def encoded(model, data, side):
    """States of all training mentions or entities."""
    loader = data.mining_dataloader() if side == "mentions" else data.entity_dataloader()
    encode = model.mention_states if side == "mentions" else model.entity_states
    return joined([states for _, states in model.batch_encoder()(loader, side, encode)])


def test_training_starts_from_cosines_of_whitened_features(root, tmp_path):
    model, data = parts(root, lr=0.0)
    make_trainer(tmp_path, Whitening(), max_epochs=1, limit_val_batches=0).fit(model, data)
    mentions, entities = (encoded(model, data, side) for side in ("mentions", "entities"))
    x, y = (side["plain"]["direction"].double().numpy() for side in (mentions, entities))
    rows = np.concatenate([x - x.mean(axis=0), y - y.mean(axis=0)])
    values, vectors = np.linalg.eigh(rows.T @ rows / len(rows))
    whitening = vectors[:, -5:] / np.sqrt(values[-5:] + values.sum() / min(rows.shape))
    x, y = ((side - side.mean(axis=0)) @ whitening for side in (x, y))
    cosines = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (y / np.linalg.norm(y, axis=1, keepdims=True)).T
    np.testing.assert_allclose(model.score(mentions, entities)["white"], cosines, atol=2e-3)


def test_a_resumed_run_keeps_its_projections(root, tmp_path):
    model, data = parts(root, lr=0.1)
    checkpoint = ModelCheckpoint(tmp_path / "checkpoints", save_last=True)
    options = {"limit_val_batches": 0, "enable_checkpointing": True}
    make_trainer(tmp_path, Whitening(), checkpoint, max_epochs=1, **options).fit(model, data)
    trained = model.matcher.units["white"].projection.detach().clone()
    again, data = parts(root, lr=0.1)
    make_trainer(tmp_path, Whitening(), max_epochs=1, limit_val_batches=0).fit(
        again, data, ckpt_path=checkpoint.last_model_path
    )
    assert torch.equal(again.matcher.units["white"].projection, trained)


def test_there_must_be_a_projection(root, tmp_path):
    model, data = parts(root, 0.1, {"plain": GlobalCosine})
    with pytest.raises(ConfigError, match="projection 512"):
        make_trainer(tmp_path, Whitening(), max_epochs=1).fit(model, data)
