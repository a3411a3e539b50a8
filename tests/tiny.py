"""A data set and a model small enough for a test to train: real files in the published layout, real encoders."""

from __future__ import annotations

import copy
import json
import random
from itertools import cycle, islice, product
from pathlib import Path
from typing import Any

from PIL import Image

NAMES = ["jaguar", "amazon", "mercury", "phoenix"]
KINDS = {"animal": "runs in the forest", "company": "sells its shares", "river": "flows to the sea"}
COLOURS = {"animal": (200, 160, 40), "company": (40, 40, 200), "river": (30, 170, 190)}
WORDS = [*NAMES, *KINDS, *" ".join(KINDS.values()).split(), "the", "sep", "today", "again", "since", "winter"]
SPLITS = {"train": 20, "dev": 7, "test": 9}

ENCODER: dict[str, Any] = {
    "config": {
        "projection_dim": 16,
        "text_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
        },
        "vision_config": {
            "hidden_size": 16,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": 16,
            "patch_size": 8,
        },
    },
    "vocabulary": WORDS,
    "text_length": 16,
    "image_dim": 8,
}


def write_set(root: Path, name: str = "Tiny", splits: dict[str, int] | None = None, entities: int = 12) -> Path:
    """Write a data set: by default 12 entities (four names of three kinds each), every third without an image."""
    rng = random.Random(0)
    for folder in ("kb_image", "mention_images"):
        (root / folder).mkdir(parents=True)
    records = []
    for position, (entity_name, kind) in enumerate(islice(cycle(product(NAMES, KINDS)), entities)):
        images = []
        if position % 3 != 2:
            images = [f"Q{position}_{i}.jpg" for i in range(2)]
            for i, image in enumerate(images):
                colour = tuple(channel - 20 * i for channel in COLOURS[kind])
                Image.new("RGB", (20 + position, 24), colour).save(root / "kb_image" / image)
        records.append(
            {
                "id": position,
                "qid": f"Q{position}",
                "entity_name": entity_name,
                "attr": f"a {kind}",
                "type": "entity",
                "image_list": images,
            }
        )
    (root / "kb_entity.json").write_text(json.dumps(records))
    (root / "qid2id.json").write_text(json.dumps({entity["qid"]: entity["id"] for entity in records}))
    for split, count in (splits or SPLITS).items():
        mentions = []
        for number in range(count):
            entity = records[rng.randrange(len(records))]
            kind = entity["attr"].removeprefix("a ")
            noise = tuple(min(255, max(0, channel + rng.randrange(-25, 26))) for channel in COLOURS[kind])
            Image.new("RGB", (30, 20), noise).save(root / "mention_images" / f"{split}{number}.jpg")
            when = rng.choice(["today", "again", "since winter"])
            mentions.append(
                {
                    "id": f"{split}-{number}",
                    "sentence": f"the {entity['entity_name']} {KINDS[kind]} {when}",
                    "mentions": entity["entity_name"],
                    "entities": entity["entity_name"],
                    "answer": entity["qid"],
                    "imgPath": f"{split}{number}.jpg",
                }
            )
        (root / f"{name}_{split}.json").write_text(json.dumps(mentions))
    return root


def config(root: Path, runs: Path) -> dict[str, Any]:
    """Configuration for `mimic-pl fit` on such a data set: two epochs in a few seconds."""
    return {
        "seed_everything": 43,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "default_root_dir": str(runs),
        },
        "model": {
            "class_path": "mimic_pl.MIMIC",
            "init_args": {
                "encoder": {"class_path": "mimic_pl.encoders.CLIPEncoder", "init_args": copy.deepcopy(ENCODER)},
                "units": {
                    name: {"class_path": f"mimic_pl.units.{unit}", "init_args": {"hidden_dim": 8}}
                    for name, unit in {"text": "TGLU", "vision": "VDLU", "cross_modal": "CMFU"}.items()
                },
                "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.001}},
            },
        },
        "data": {
            "class_path": "mimic_pl.MELDataModule",
            "init_args": {"root": str(root), "name": "Tiny", "batch_size": 8, "num_workers": 0},
        },
    }
