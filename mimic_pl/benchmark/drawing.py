"""Synthetic images and a synthetic data set for the benchmark."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from PIL import Image

from mimic_pl.benchmark.encoders import WORDS


def draw_images(folder: Path, count: int, size: tuple[int, int], seed: int) -> list[str]:
    """Draw JPEGs that take as long to decode as photographs: smooth shades, edges and grain.

    Args:
        folder: Output folder, created if it does not exist.
        count: Number of images.
        size: Width and height in pixels.
        seed: Random seed.

    Returns:
        File names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    names = []
    for number in range(count):
        shades = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
        image = np.asarray(shades.resize(size, Image.Resampling.BICUBIC), dtype=np.int16)
        grain = rng.normal(0, 8, image.shape).astype(np.int16)
        names.append(f"{number}.jpg")
        Image.fromarray((image + grain).clip(0, 255).astype(np.uint8)).save(folder / names[-1], quality=90)
    return names


def draw_set(root: Path, entities: int, size: tuple[int, int], seed: int) -> None:
    """Draw a data set in the published layout: entities with one image each, and one test mention."""
    images = draw_images(root / "kb_image", entities, size, seed)
    rng = np.random.default_rng(seed)
    table = [
        {
            "id": number,
            "qid": f"Q{number}",
            "entity_name": f"{rng.choice(WORDS)} {number}",
            "attr": " ".join(rng.choice(WORDS, 24)),
            "image_list": [image],
        }
        for number, image in enumerate(images)
    ]
    mention = {"id": "0", "sentence": "old castle", "mentions": "castle", "answer": "Q0", "imgPath": ""}
    (root / "kb_entity.json").write_text(json.dumps(table), encoding="utf-8")
    (root / "Drawn_test.json").write_text(json.dumps([mention]), encoding="utf-8")
