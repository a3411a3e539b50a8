"""Ranking problems to measure: a model, mentions with golds, and the states of a knowledge base."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from mimic_pl.batch import Batch
from mimic_pl.benchmark.literal import require_published
from mimic_pl.data.dataset import BatchDataset, collate
from mimic_pl.encoding import Side
from mimic_pl.features import FeatureDims, Features
from mimic_pl.model import MIMIC
from mimic_pl.ranking import EntityIndex, IndexDtype, MemoryIndex, Ranker
from mimic_pl.runs import load_run
from mimic_pl.units import Matcher, States, published_units

DIMS = FeatureDims(512, 96)
TEXT_TOKENS, IMAGE_TOKENS = 40, 50
"""Published sizes; the units' default hidden width is the published 96."""

MENTIONS_AT_ONCE = 128
"""Mentions ranked at once, the default of the data module."""

NOISE = 0.5
"""Standard deviation of the noise in noisy copies of entities, relative to that of the values."""

_BATCH = 256
_GOLDS_FROM = 40


@dataclass
class Problem:
    """Mentions, and the knowledge base to rank for them.

    Attributes:
        name: Name in the table.
        matcher: The matcher.
        mentions: Features of the mentions.
        states: States of the mentions.
        gold: Positions of their golds, int64 ``[mentions, golds]``, padded with -1.
        index: All entities, in float32.
        sample: Ascending positions of some entities, including all golds, int64 ``[sample]``.
        sample_features: Features of the sample.
    """

    name: str
    matcher: Matcher
    mentions: Features
    states: States
    gold: Tensor
    index: EntityIndex
    sample: Tensor
    sample_features: Features

    def sampled(self) -> tuple[EntityIndex, Tensor]:
        """The sample as a separate knowledge base, and the golds' positions in it."""
        position = torch.searchsorted(self.sample.to(self.gold.device), self.gold.clamp_min(0))
        return in_dtype(self.index, "float32", self.sample), torch.where(self.gold >= 0, position, -1)


def rows(states: States, part: slice) -> States:
    """Some rows of each unit's state."""
    return {unit: {name: tensor[part] for name, tensor in state.items()} for unit, state in states.items()}


def in_dtype(
    index: EntityIndex, dtype: IndexDtype, positions: Tensor | None = None, unit: str | None = None
) -> MemoryIndex:
    """Copy an index to another dtype.

    Args:
        index: An index in float32.
        dtype: Dtype of the copy.
        positions: Positions of the entities to copy; all by default.
        unit: The unit whose states to copy; all by default.
    """
    count = len(index) if positions is None else len(positions)
    copy = MemoryIndex(index.device, dtype, capacity=count)
    for start in range(0, count, _BATCH):
        stop = min(start + _BATCH, count)
        part = torch.arange(start, stop) if positions is None else positions[start:stop]
        states = {name: dict(state) for name, state in index.select(part).states.items() if unit in (None, name)}
        add(copy, states)
    return copy


def add(index: MemoryIndex, states: States) -> None:
    """Add entities to an index with numbers as ids."""
    count = len(next(iter(next(iter(states.values())).values())))
    index.add([str(number) for number in range(len(index), len(index) + count)], states)


def random_features(count: int, generator: torch.Generator, device: str) -> Features:
    """Random features of the published sizes, with texts of random lengths."""

    def numbers(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=generator).to(device)

    lengths = torch.randint(1, TEXT_TOKENS + 1, (count, 1), generator=generator)
    return Features(
        text_global=numbers(DIMS.text),
        text_local=numbers(TEXT_TOKENS, DIMS.text),
        image_global=numbers(DIMS.image),
        image_local=numbers(IMAGE_TOKENS, DIMS.image),
        text_mask=(torch.arange(TEXT_TOKENS) < lengths).long().to(device),
    )


def random_matcher(seed: int, device: str) -> Matcher:
    """The published units with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Matcher(DIMS, published_units()).eval().to(device)


@torch.no_grad()
def random_problem(mentions: int, entities: int, sample: int, seed: int, device: str) -> Problem:
    """A problem with random features and random weights.

    Each gold is one of its mention's top 40 entities, so that golds have the ranks that H@k depends on.
    """
    generator = torch.Generator().manual_seed(seed)
    matcher = random_matcher(seed, device)
    mention_features = random_features(mentions, generator, device)
    states = matcher.mention(mention_features)
    index = MemoryIndex(device, capacity=entities)
    kept: list[Features] = []
    for start in range(0, entities, _BATCH):
        batch = random_features(min(_BATCH, entities - start), generator, device)
        add(index, matcher.entity(batch))
        if start < sample:
            kept.append(batch)
    sample = min(sample, entities)
    features = Features.joined(kept)
    # Golds come from the sample, whose ranking is checked against the reference.
    best = min(_GOLDS_FROM, sample)
    small = in_dtype(index, "float32", torch.arange(sample))
    top = Ranker(best, "cheap", prune=False)(matcher, states, small).top_entities
    rank = torch.arange(mentions, device=device)[:, None] % best
    return Problem(
        "random",
        matcher,
        mention_features,
        states,
        top.gather(1, rank),
        index,
        torch.arange(sample),
        features.rows(slice(sample)),
    )


@torch.no_grad()
def run_problem(
    folder: str, mentions: int, entities: int | None, inflate: int | None, sample: int, seed: int, device: str
) -> Problem:
    """A trained run's model on its data: test mentions with golds, and its knowledge base or a part of it.

    Args:
        folder: Folder of the run.
        mentions: Maximum number of mentions.
        entities: Number of entities to sample from the knowledge base, including the golds; all by default.
        inflate: Number of entities to reach by adding noisy copies.
        sample: Number of entities whose features are kept.
        seed: Random seed.
        device: Device to compute on.

    Raises:
        ConfigError: The folder is not a run, or its units are not those of the published model.
    """
    model, datamodule = load_run(folder)
    require_published(model.matcher)
    model.to(device)
    datamodule.setup("test")
    data = datamodule.ranked
    generator = torch.Generator().manual_seed(seed)
    dataset = data.dataset("test")
    with_gold = [row for row, golds in enumerate(dataset.golds) if golds]
    selected = sorted(with_gold[row] for row in torch.randperm(len(with_gold), generator=generator)[:mentions].tolist())
    batches = list(_encoded(model, dataset, selected, data.num_workers, "mentions"))
    features = Features.joined([features for _, features in batches])
    golds = torch.cat([batch["gold"] for batch, _ in batches])

    first = torch.unique(golds[golds >= 0].cpu())
    size = len(data.entities)
    others = torch.randperm(size, generator=generator)
    others = others[~torch.isin(others, first)]
    positions = torch.cat([first, others[: max(0, (entities or size) - len(first))]]).sort().values
    # All golds and some other entities.
    sampled = torch.cat([first, others[torch.isin(others, positions)][: max(0, sample - len(first))]]).sort().values
    size = max(inflate or 0, len(positions))
    index = MemoryIndex(device, capacity=size)
    kept: list[Features] = []
    done = 0
    for _, batch in _encoded(model, data.entity_dataset, positions.tolist(), data.num_workers, "entities"):
        batch = batch.padded(model.encoder.text_length)
        add(index, model.matcher.entity(batch))
        in_sample = torch.isin(positions[done : done + len(batch.text_global)], sampled).to(device)
        kept.append(batch.rows(in_sample))
        done += len(in_sample)
    while len(index) < size:
        add(index, _noisy_copies(index, done, min(_BATCH * 4, size - len(index)), generator))
    gold_positions = torch.searchsorted(positions, golds.clamp_min(0).cpu())
    return Problem(
        f"{data.folder.name}, {done} entities" + (f" and {len(index) - done} noisy copies" if inflate else ""),
        model.matcher,
        features,
        model.matcher.mention(features),
        torch.where(golds >= 0, gold_positions.to(golds.device), -1),
        index,
        torch.searchsorted(positions, sampled),
        Features.joined(kept),
    )


def _encoded(
    model: MIMIC, dataset: BatchDataset, selected: list[int], num_workers: int, side: Side
) -> Iterator[tuple[Batch, Features]]:
    """Batches of selected records, and their features."""
    batches = [selected[start : start + _BATCH] for start in range(0, len(selected), _BATCH)]
    loader = DataLoader(dataset, sampler=batches, batch_size=None, collate_fn=collate, num_workers=num_workers)
    return model.batch_encoder()(loader, side, model.encode)


def _noisy_copies(index: MemoryIndex, entities: int, count: int, generator: torch.Generator) -> States:
    """States of ``count`` of the first ``entities``, sampled with replacement, plus Gaussian noise."""
    states = index.select(torch.randint(entities, (count,), generator=generator)).states

    def add_noise(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device)
        return tensor + NOISE * tensor.std() * noise

    return {unit: {name: add_noise(state[name]) for name in state} for unit, state in states.items()}
