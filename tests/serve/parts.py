"""A small knowledge base with its model, as an engineer would have them."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image

from mimic_pl import MIMIC, Linker
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.processor import Processor
from tests import tiny

KINDS = list(tiny.KINDS)


def knowledge_base(folder: Path, **settings) -> Path:
    """Folder of a knowledge base of nine entities, the first with an image; its model is saved beside it."""
    torch.manual_seed(0)
    model = MIMIC(CLIPEncoder(**tiny.ENCODER), Processor(entity_template="{name} [SEP] {attr}", **settings)).eval()
    model.save_pretrained(folder / "model")
    Image.new("RGB", (300, 40), (10, 90, 200)).save(folder / "Q0.png")
    entities = [
        {"id": f"Q{n}", "name": tiny.NAMES[n % 4], "attr": f"a {KINDS[n % 3]}", "type": KINDS[n % 3]} for n in range(9)
    ]
    entities[0]["image"] = str(folder / "Q0.png")
    Linker.from_pretrained(folder / "model", "cpu").index(entities, folder / "kb", show_progress_bar=False)
    return folder / "kb"
