"""Time and peak memory of a training step against the published order, for the matcher and the whole model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mimic_pl.benchmark import literal
from mimic_pl.benchmark.encoders import EncoderSize, build_encoder, random_inputs
from mimic_pl.benchmark.memory import peak_memory
from mimic_pl.benchmark.problem import random_features, random_matcher
from mimic_pl.benchmark.report import Line, Row, fact, sized, timed
from mimic_pl.benchmark.settings import Settings
from mimic_pl.benchmark.timing import Work, time_interleaved
from mimic_pl.encoders import Encoder
from mimic_pl.features import Features
from mimic_pl.loss_inputs import LossInputs
from mimic_pl.losses import UnitConsistentLoss
from mimic_pl.units import Matcher

Order = Literal["published order", "ours"]
PUBLISHED: Order = "published order"
OURS: Order = "ours"


def training(settings: Settings) -> Row:
    """Measure forward and backward pass of a batch of pairs."""
    batch = min(settings.batches[0], settings.size(settings.batches[0], 16))
    lines: list[Line] = []
    for whole in (False, True):
        works: dict[str, Work] = {order: Work(_step(order, batch, whole, settings)) for order in (OURS, PUBLISHED)}
        rounds = min(settings.num_rounds, 3) if whole else settings.num_rounds
        times = time_interleaved(works, rounds, settings.device)
        what = f"whole model, {settings.encoder} encoder" if whole else "matcher alone"
        lines.append(timed(f"{what}, batch {batch}", times[OURS], PUBLISHED, times[PUBLISHED], "step"))
        del works
        if whole and settings.quick:
            break
        peaks = {order: _peak(order, batch, whole, settings) for order in (OURS, PUBLISHED)}
        lines.append(sized(f"{what}, batch {batch}, peak memory", peaks[OURS], PUBLISHED, peaks[PUBLISHED]))
    for size in settings.batches[1:]:
        lines.append(fact(f"matcher alone, batch {size}, peak memory", _peak(OURS, size, False, settings), "B"))
        times = time_interleaved({OURS: Work(_step(OURS, size, False, settings))}, 1, settings.device)
        lines.append(fact(f"matcher alone, batch {size}", times[OURS].median, "s", "step"))
    return {
        "title": "Training step, forward and backward, at published sizes of the units",
        "setting": {"rounds": settings.num_rounds},
        "lines": lines,
        "checks": {"largest difference of a gradient, relative to the largest gradient": _difference(settings)},
    }


def prepare_step(order: Order, batch: int, whole: bool, encoder: EncoderSize, seed: int, device: str) -> Any:
    """Build a training step and warm up with a small one."""
    run, warm_up = make_step(order, batch, whole, encoder, seed, device)
    warm_up()
    return run


def make_step(
    order: Order, batch: int, whole: bool, encoder: EncoderSize, seed: int, device: str
) -> tuple[Callable[[], None], Callable[[], None]]:
    """Build a training step on a batch, and one on a few of its pairs.

    Args:
        order: Order of operations.
        batch: Number of pairs.
        whole: Include an encoder; otherwise features are given and get gradients.
        encoder: Size of the encoder.
        seed: Seed of weights and batch.
        device: Device to compute on.
    """
    generator = torch.Generator().manual_seed(seed)
    matcher = random_matcher(seed, device).train()
    tower = build_encoder(encoder, seed).to(device).train() if whole else None
    loss = UnitConsistentLoss()
    sides: list[Any] = [
        random_inputs(tower, batch, generator, device) if tower is not None else _leaves(batch, generator, device)
        for _ in range(2)
    ]

    def step(size: int | None) -> None:
        for module in (matcher, tower):
            if module is not None:
                module.zero_grad(set_to_none=True)
        mentions, entities = (_features(tower, side, size) for side in sides)
        scores = score(order, matcher, mentions, entities)
        total, _ = loss(_of_batch(scores, mentions, entities))
        total.backward()

    return lambda: step(None), lambda: step(2)


def score(order: Order, matcher: Matcher, mentions: Features, entities: Features) -> dict[str, Tensor]:
    """Scores of a training batch in one of the orders."""
    if order == PUBLISHED:
        return literal.pair_scores(matcher, mentions, entities)
    return matcher.score(matcher.mention(mentions), matcher.entity(entities))


def _step(order: Order, batch: int, whole: bool, settings: Settings) -> Callable[[], None]:
    return make_step(order, batch, whole, settings.encoder, settings.seed, settings.device)[0]


def _peak(order: Order, batch: int, whole: bool, settings: Settings) -> int:
    arguments = order, batch, whole, settings.encoder, settings.seed, settings.device
    return peak_memory(prepare_step, settings.device, torch.get_num_threads(), *arguments).increase


def _leaves(batch: int, generator: torch.Generator, device: str) -> Features:
    features = random_features(batch, generator, device)
    return features.map(lambda field: field.requires_grad_() if field.is_floating_point() else field)


def _features(tower: Encoder | None, side: Any, size: int | None) -> Features:
    if tower is not None:
        return tower(**{name: tensor[:size] for name, tensor in side.items()})
    for field in side[:4]:
        field.grad = None
    return side.rows(slice(size))


def _of_batch(scores: dict[str, Tensor], mentions: Features, entities: Features) -> LossInputs:
    """Loss inputs of a batch without duplicate golds."""
    return LossInputs(scores, mentions, entities, torch.zeros_like(scores["overall"], dtype=torch.bool))


def _difference(settings: Settings) -> float:
    """Largest relative difference of gradients between the two orders, on a small batch."""
    matcher = random_matcher(settings.seed, settings.device).train()
    gradients: list[dict[str, Tensor]] = []
    for order in (OURS, PUBLISHED):
        generator = torch.Generator().manual_seed(settings.seed)
        mentions, entities = (random_features(16, generator, settings.device) for _ in range(2))
        copied = copy.deepcopy(matcher)
        scores = score(order, copied, mentions, entities)
        UnitConsistentLoss()(_of_batch(scores, mentions, entities))[0].backward()
        gradients.append({name: weight.grad for name, weight in copied.named_parameters() if weight.grad is not None})
    ours, published = gradients
    assert set(ours) == set(published), "both orders use the same weights"
    largest = max(gradient.abs().max().item() for gradient in published.values())
    return max((ours[name] - published[name]).abs().max().item() for name in published) / largest
