"""Encoding a knowledge base: entities per second from files to states, and the cost of reading the files."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch

from mimic_pl.batch import Batch
from mimic_pl.benchmark.drawing import draw_set
from mimic_pl.benchmark.encoders import build_encoder
from mimic_pl.benchmark.images import PROCESSOR, transformers_processor
from mimic_pl.benchmark.report import Row, fact, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.data import MELDataModule
from mimic_pl.encoding import BatchEncoder
from mimic_pl.model import MIMIC

_BATCH = 128
_IMAGE = 500, 400


def encoding(settings: Settings) -> Row:
    """Measure encoding of a synthetic knowledge base with the data module's loader, the encoder and the matcher."""
    entities = settings.size(512, 24)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        model = MIMIC(build_encoder(settings.encoder, settings.seed)).to(settings.device)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "Drawn"
        draw_set(root, entities, _IMAGE, settings.seed)
        cached, bare = (_data(root, model, cache, settings) for cache in (str(Path(folder) / "cache"), None))
        run = BatchEncoder(model, model.processor)
        ready = list(map(run.to_device, cached.entity_dataloader()))
        process = transformers_processor(model.processor.image_processor)
        texts = [model.processor.entity_text(entity) for entity in cached.entities]
        paths = [cached.entity_images.path(entity.image_files[0]) for entity in cached.entities]

        def encode(batches: Iterable[Batch]) -> None:
            for _ in run(batches, "entities", model.entity_states):
                pass

        def one_by_one() -> None:
            def batches() -> Iterable[Batch]:
                for start in range(0, entities, _BATCH):
                    part = slice(start, start + _BATCH)
                    ids, mask = model.processor.tokenizer(texts[part])
                    pixels = torch.stack([process(path) for path in paths[part]])
                    yield {"entities": {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}}

            encode(batches())

        works = {
            "ours, images cached": Work(lambda: encode(cached.entity_dataloader()), entities),
            "ours, no cache": Work(lambda: encode(bare.entity_dataloader()), entities),
            PROCESSOR: Work(one_by_one, entities),
            "ready tensors": Work(lambda: encode(ready), entities),
        }
        times = time_interleaved(works, min(settings.num_rounds, 3), settings.device)
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


def _data(root: Path, model: MIMIC, cache: str | None, settings: Settings) -> MELDataModule:
    workers = settings.size(2, 0)
    data = MELDataModule(str(root), entity_batch_size=_BATCH, num_workers=workers, image_cache=cache)
    data.processor = model.processor
    data.setup("test")
    return data
