"""A model with given scores and a data module of plain records, in place of the real ones."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, TensorDataset

from mimic_pl.data import PublishedStatistics
from mimic_pl.metrics import rank_metrics
from mimic_pl.ranking import Ranking
from mimic_pl.records import Entity, Mention
from tests import training
from tests.reference import ranking

NUM_ENTITIES = 8
NUM_MENTIONS = 11


class Records(LightningDataModule):
    published: ClassVar[Any] = None

    def __init__(self) -> None:
        super().__init__()
        self.entities = [Entity(f"Q{i}", f"entity {i}") for i in range(NUM_ENTITIES)]
        golds = [("Q99",) if i == 4 else (f"Q{i % NUM_ENTITIES}",) for i in range(NUM_MENTIONS)]
        self.mentions = {
            split: [Mention(f"{split}-{i}", f"mention {i}", f"a | sentence {i}", golds[i]) for i in range(NUM_MENTIONS)]
            for split in ("val", "test", "predict")
        }

    def _loader(self) -> DataLoader:
        return DataLoader(TensorDataset(torch.arange(NUM_MENTIONS)), batch_size=2)

    def train_dataloader(self) -> DataLoader:
        return self._loader()

    def val_dataloader(self) -> DataLoader:
        return self._loader()

    def test_dataloader(self) -> DataLoader:
        return self._loader()

    def predict_dataloader(self) -> DataLoader:
        return self._loader()

    def mention_image(self, mention: Mention) -> Image.Image | None:
        return Image.new("RGB", (30, 60), "red")

    def entity_image(self, entity: Entity) -> Image.Image | None:
        return None if entity.id == "Q1" else Image.new("RGB", (300, 60), "blue")


class PublishedRecords(Records):
    published = PublishedStatistics({}, 0, {"hits@1": 0.8798, "mrr": 0.9182, "mr": 11.02})


class GivenScores(LightningModule):
    """A model that ranks by fixed random scores with many ties."""

    def __init__(self, kept: int = 5, fail_at: int | None = None) -> None:
        super().__init__()
        generator = np.random.default_rng(3)
        self.scores = {
            name: generator.integers(0, 6, (NUM_MENTIONS, NUM_ENTITIES)).astype(np.float32)
            for name in ("overall", "text")
        }
        self.kept = kept
        self.fail_at = fail_at
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.overall = torch.nn.ModuleDict({stage: rank_metrics(f"{stage}/") for stage in ("val", "test")})
        self.text = torch.nn.ModuleDict({stage: rank_metrics(f"{stage}/text/") for stage in ("val", "test")})

    def rank(self, name: str, index: int) -> int:
        return 0 if index == 4 else ranking(self.scores[name][index]).index(index % NUM_ENTITIES) + 1

    def _step(self, batch: list[torch.Tensor]) -> dict[str, Any]:
        rows = batch[0].tolist()
        if self.fail_at in rows:
            raise RuntimeError("interrupted")
        top = [ranking(self.scores["overall"][row])[: self.kept] for row in rows]
        ranks = {name: torch.tensor([self.rank(name, row) for row in rows]) for name in self.scores}
        tops = {
            name: torch.tensor(np.array([matrix[row][best] for row, best in zip(rows, top, strict=True)]))
            for name, matrix in self.scores.items()
        }
        return {"ranking": Ranking(ranks, torch.tensor(top), tops), "index": batch[0]}

    def _evaluate(self, batch: list[torch.Tensor], stage: str) -> dict[str, Any]:
        outputs = self._step(batch)
        self.overall[stage].update(outputs["ranking"].ranks["overall"], num_entities=NUM_ENTITIES)
        self.text[stage].update(outputs["ranking"].ranks["text"], num_entities=NUM_ENTITIES)
        self.log_dict(self.overall[stage], on_epoch=True, on_step=False)
        self.log_dict(self.text[stage], on_epoch=True, on_step=False)
        return outputs

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.weight**2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def validation_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "val")

    def test_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._evaluate(batch, "test")

    def predict_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        return self._step(batch)


@pytest.fixture
def records() -> Records:
    return Records()


@pytest.fixture
def published_records() -> Records:
    return PublishedRecords()


@pytest.fixture
def given_scores():
    return GivenScores


@pytest.fixture
def make_trainer(tmp_path):
    """Make a Trainer in one process with some callbacks, which writes below tmp_path."""

    def make(*callbacks: Any, **kwargs: Any) -> Trainer:
        return training.make_trainer(
            kwargs.pop("default_root_dir", tmp_path), *callbacks, **{"num_sanity_val_steps": 2, **kwargs}
        )

    return make
