"""Loading images in first and later epochs, against Pillow and transformers' processor."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mimic_pl.benchmark.drawing import draw_images
from mimic_pl.benchmark.encoders import build_encoder
from mimic_pl.benchmark.report import Line, Row, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.data.image_cache import ImageCache
from mimic_pl.data.pixels import PixelSource
from mimic_pl.processor import ImageProcessor
from mimic_pl.processor.images import ImageFolder

PROCESSOR = "Pillow and CLIPImageProcessorPil"
SIZES = ((500, 400), (1500, 1200))

_BATCH = 64


def images(settings: Settings) -> Row:
    """Measure loading of images of two sizes, one by one and in batches."""
    lines: list[Line] = []
    differences: dict[str, Any] = {}
    number = settings.size(64, 8)
    image_processor = build_encoder("small", settings.seed).build_image_processor()
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            names = draw_images(Path(folder) / "images", number, size, settings.seed)
            title = f"{size[0]}x{size[1]}"
            lines_of_size, difference = _measured(Path(folder), names, image_processor, settings, title)
            lines += lines_of_size
            differences[f"largest difference of a normalised {title} image"] = difference
    return {
        "title": "Image pipeline: from JPEG to normalised 224 x 224 float32 tensor",
        "setting": {"images": number, "batch": min(_BATCH, number), "rounds": settings.num_rounds},
        "lines": lines,
        "checks": differences,
    }


def transformers_processor(image_processor: ImageProcessor) -> Callable[[Path], Tensor]:
    """A function that loads an image with Pillow and transformers' processor, with the published preprocessing."""
    from transformers.models.clip import CLIPImageProcessorPil

    side = image_processor.image_size
    processor = CLIPImageProcessorPil(
        do_resize=True,
        size={"height": side, "width": side},
        resample=Image.Resampling.LANCZOS,
        do_center_crop=False,
        image_mean=list(image_processor.image_mean),
        image_std=list(image_processor.image_std),
    )

    def process(path: Path) -> Tensor:
        with Image.open(path) as image:
            return processor(image.convert("RGB"), return_tensors="pt")["pixel_values"][0]

    return process


def _measured(
    root: Path, names: list[str], image_processor: ImageProcessor, settings: Settings, size: str
) -> tuple[list[Line], float]:
    folder = ImageFolder(root / "images", "error")
    process = transformers_processor(image_processor)
    paths = [folder.path(name) for name in names]

    def filled(path: Path) -> ImageCache:
        cache = ImageCache(path, image_processor)
        cache.fill(lambda: [(folder, (name,)) for name in names])
        return cache

    cache = filled(root / "cache")
    source = PixelSource(folder, image_processor, cache=cache)
    fresh = count()

    def epoch(source: PixelSource, batch: int) -> Tensor:
        for start in range(0, len(names), batch):
            pixels, has_image, _ = source.batch([(name,) for name in names[start : start + batch]])
            normalized = image_processor.normalize(pixels.to(settings.device), has_image.to(settings.device))
        return normalized

    def first_epoch() -> Tensor:
        new = filled(root / f"fresh{next(fresh)}")
        return epoch(PixelSource(folder, image_processor, cache=new), _BATCH)

    works = {
        PROCESSOR: Work(lambda: [process(path) for path in paths], len(names)),
        "first epoch, filling the cache": Work(first_epoch, len(names)),
        "without a cache": Work(lambda: epoch(PixelSource(folder, image_processor), _BATCH), len(names)),
        "later epochs, one by one": Work(lambda: epoch(source, 1), len(names)),
        "later epochs, in batches": Work(lambda: epoch(source, _BATCH), len(names)),
    }
    times = time_interleaved(works, settings.num_rounds, settings.device)
    lines = [
        timed(f"{size}: {what}", times[what], PROCESSOR, times[PROCESSOR], "image")
        for what in works
        if what != PROCESSOR
    ]
    ours = epoch(source, len(names)).cpu()
    theirs = torch.stack([process(path) for path in paths])
    return lines, (ours - theirs).abs().max().item()
