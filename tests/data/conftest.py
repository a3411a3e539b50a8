"""A builder of data sets in the published layout, and a processor small enough to check by hand."""

from __future__ import annotations

import inspect
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule
from PIL import Image

from mimic_pl.data import CrossDataModule, MELDataModule
from mimic_pl.processor import Processor

PROCESSOR_OPTIONS = set(inspect.signature(Processor).parameters)


class WordTokenizer:
    """Hashes words to ids, padded on the right to 8 tokens."""

    text_length = 8
    side = "right"

    def __call__(self, texts):
        ids = torch.zeros(len(texts), 8, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, text in enumerate(texts):
            words = [1 + zlib.crc32(word.encode()) % 60_000 for word in text.split()][:8]
            at = 0 if self.side == "right" else 8 - len(words)
            ids[row, at : at + len(words)] = torch.tensor(words, dtype=torch.int64)
            mask[row, at : at + len(words)] = 1
        return ids, mask


class SmallImages:
    """Resizes images to 4 x 4."""

    image_size = 4
    resize = None

    def pixels(self, image):
        assert image.mode == "RGB"
        return torch.from_numpy(np.array(image.resize((4, 4)))).permute(2, 0, 1).contiguous()

    def normalize(self, pixels, has_image):
        return (pixels.float() / 127.5 - 1) * has_image[:, None, None, None]


def word_processor(**settings: Any) -> Processor:
    """A processor with the word tokenizer and small images."""
    return Processor(**settings).connect(WordTokenizer, SmallImages)


class Folder:
    """A data set to be modified: change ``entities`` and ``splits``, then call :meth:`module`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write_qid2id = True
        for name in ("kb_image", "mention_images"):
            (root / name).mkdir(parents=True)
        self.entities: list[Any] = []
        for i in range(6):
            images = [f"Q{i}_{j}.png" for j in range(i % 3)]
            for j, name in enumerate(images):
                self.image(f"kb_image/{name}", (40 * i, 100 * j, 7))
            self.entities.append(
                {"id": i, "qid": f"Q{i}", "entity_name": f"name{i}", "attr": f"a{i}", "image_list": images}
            )
        self.splits: dict[str, list[Any]] = {"train": [], "dev": [], "test": []}
        for split, count in (("train", 11), ("dev", 5), ("test", 7)):
            for i in range(count):
                name = f"{split}{i}.jpg"
                self.image(f"mention_images/{name}", (20 * i, len(split) * 9, 200))
                self.splits[split].append(
                    {
                        "id": f"{split}-{i}",
                        "sentence": f"{split} sentence {i}",
                        "mentions": f"name{i % 6}",
                        "answer": f"Q{i % 6}",
                        "imgPath": name,
                    }
                )

    def image(self, name: str, colour: tuple[int, int, int] = (1, 2, 3)) -> Path:
        path = self.root / name
        Image.new("RGB", (9, 6), colour).save(path)
        return path

    def write(self) -> None:
        (self.root / "kb_entity.json").write_text(json.dumps(self.entities))
        if self.write_qid2id:
            (self.root / "qid2id.json").write_text(json.dumps({e["qid"]: e["id"] for e in self.entities}))
        for split, rows in self.splits.items():
            (self.root / f"Set_{split}.json").write_text(json.dumps(rows))

    def module(self, **options: Any) -> MELDataModule:
        self.write()
        options = {"batch_size": 4, "eval_batch_size": 3, "entity_batch_size": 4, "num_workers": 0, **options}
        settings = {name: options.pop(name) for name in PROCESSOR_OPTIONS & options.keys()}
        module = MELDataModule(str(self.root), name="Set", **options)
        module.processor = word_processor(**settings)
        return module


def epoch_of(module: MELDataModule | CrossDataModule, epoch: int) -> list[dict[str, Any]]:
    """All training batches of an epoch."""
    loader = module.train_dataloader()
    loader.sampler.set_epoch(epoch)
    batches = list(loader)
    assert len(loader) == len(batches)
    return batches


class BatchRecorder(LightningModule):
    """A model that records its training batches."""

    def __init__(self) -> None:
        super().__init__()
        self.processor = word_processor()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.batches: list[dict[str, Any]] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
        self.batches.append(batch)
        return (self.weight * batch["mentions"]["pixel_values"].mean()).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters())


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "Set")
