"""Encoding a knowledge base: entities per second, from files to states, and what reading them costs."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from mimic_pl.benchmark.drawing import draw_set
from mimic_pl.benchmark.encoders import build_encoder
from mimic_pl.benchmark.images import PROCESSOR, transformers_processor
from mimic_pl.benchmark.problem import random_matcher
from mimic_pl.benchmark.report import Row, fact, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, in_turn
from mimic_pl.data import MELDataModule
from mimic_pl.encoders import CLIPEncoder
from mimic_pl.units import Matcher

_BATCH = 128
_IMAGE = 500, 400


def encoding(settings: Settings) -> Row:
    """A drawn knowledge base through the data module's loader, the encoder and the matcher."""
    entities = settings.size(512, 24)
    encoder = build_encoder(settings.encoder, settings.seed).to(settings.device).eval()
    matcher = random_matcher(settings.seed, settings.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "Drawn"
        draw_set(root, entities, _IMAGE, settings.seed)
        cached, bare = (_data(root, encoder, cache, settings) for cache in (str(Path(folder) / "cache"), None))
        ready = [_moved(cached, batch, settings.device) for batch in cached.entity_dataloader()]
        process = transformers_processor(encoder.preprocessor)
        texts = [cached.entity_template(entity) for entity in cached.entities]
        paths = [cached.entity_images.path(entity.images[0]) for entity in cached.entities]

        def read(data: MELDataModule) -> None:
            _encode(encoder, matcher, (_moved(data, batch, settings.device) for batch in data.entity_dataloader()))

        def one_by_one() -> None:
            def batches() -> Iterable[dict[str, Any]]:
                for start in range(0, entities, _BATCH):
                    part = slice(start, start + _BATCH)
                    ids, mask = encoder.preprocessor.tokenize(texts[part])
                    pixels = torch.stack([process(path) for path in paths[part]])
                    side = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
                    yield {name: tensor.to(settings.device) for name, tensor in side.items()}

            _encode(encoder, matcher, batches())

        works = {
            "ours, images cached": Work(lambda: read(cached), entities),
            "ours, no cache": Work(lambda: read(bare), entities),
            PROCESSOR: Work(one_by_one, entities),
            "ready tensors": Work(lambda: _encode(encoder, matcher, ready), entities),
        }
        times = in_turn(works, min(settings.turns, 3), settings.device)
    ours = times["ours, images cached"]
    return {
        "title": f"Encoding a knowledge base with the {settings.encoder} encoder",
        "setting": {"entities": entities, "batch": _BATCH, "loader processes": cached.num_workers},
        "lines": [
            timed("loader, images cached", ours, PROCESSOR, times[PROCESSOR], "entity"),
            timed("loader, no cache", times["ours, no cache"], PROCESSOR, times[PROCESSOR], "entity"),
            timed("loader, images cached", ours, "ready tensors, the encoder alone", times["ready tensors"], "entity"),
            fact("entities per second, images cached", 1 / ours.median, ""),
        ],
    }


def _data(root: Path, encoder: CLIPEncoder, cache: str | None, settings: Settings) -> MELDataModule:
    workers = settings.size(2, 0)
    data = MELDataModule(str(root), entity_batch_size=_BATCH, num_workers=workers, image_cache=cache)
    data.preprocessor = encoder.preprocessor
    data.setup("test")
    return data


def _moved(data: MELDataModule, batch: dict[str, Any], device: str) -> dict[str, Any]:
    on_device = data.transfer_batch_to_device(batch, torch.device(device), 0)
    side: dict[str, Any] = data.on_after_batch_transfer(on_device, 0)["entities"]
    return side


@torch.no_grad()
def _encode(encoder: CLIPEncoder, matcher: Matcher, batches: Iterable[dict[str, Any]]) -> None:
    for batch in batches:
        matcher.entity(encoder(**batch))
