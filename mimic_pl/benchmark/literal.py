"""A literal implementation of the published order of operations, as the reference of the benchmark and the tests.

For every batch of mentions, the features of all entities, including every token, are moved to the device and go through
the units again. TGLU's attention is multiplied with V before the mean over the entity's tokens, for every pair; VDLU
has vectors for every pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.features import Features
from mimic_pl.units import CMFU, TGLU, VDLU, Matcher, Unit
from mimic_pl.units.vdlu import DualGate

MENTIONS_AT_ONCE = 20
"""Mentions per batch of the published evaluation."""

ENTITIES_AT_ONCE = 200
"""Entities scored at once, chosen for the best speed."""


def scores(
    matcher: Matcher, mentions: Features, entities: Features, only: str | None = None, device: str | None = None
) -> dict[str, Tensor]:
    """Scores of all pairs by name, ``[mentions, entities]``, batch by batch as in the published evaluation.

    Args:
        matcher: Norms and published units.
        mentions: Features of the mentions.
        entities: Features of the entities, on any device.
        only: Score with this unit only, from features that are already normed.
        device: Device to which features are moved; not moved by default.
    """
    rows: list[dict[str, Tensor]] = []
    for batch in _parts(mentions, MENTIONS_AT_ONCE):
        columns = []
        moved = _moved(batch, device)
        for part in _parts(entities, ENTITIES_AT_ONCE):
            sides = moved, _moved(part, device)
            columns.append(pair_scores(matcher, *sides) if only is None else {only: _unit(matcher.units[only])(*sides)})
        rows.append({name: torch.cat([column[name] for column in columns], dim=1) for name in columns[0]})
    return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}


def pair_scores(matcher: Matcher, mentions: Features, entities: Features) -> dict[str, Tensor]:
    """Differentiable scores of all pairs of one batch by name, ``[mentions, entities]``."""
    mentions, entities = normed(matcher, mentions), normed(matcher, entities)
    units = {name: _unit(unit)(mentions, entities) for name, unit in matcher.units.items()}
    return {"overall": matcher.overall(units), **units}


def normed(matcher: Matcher, features: Features) -> Features:
    """Features after the four shared norms."""
    return features._replace(
        text_global=matcher.text_global_norm(features.text_global),
        text_local=matcher.text_local_norm(features.text_local),
        image_global=matcher.image_global_norm(features.image_global),
        image_local=matcher.image_local_norm(features.image_local),
    )


def require_published(matcher: Matcher) -> None:
    """Check that all units are published ones.

    Raises:
        ConfigError: A unit is not.
    """
    for unit in matcher.units.values():
        _unit(unit)


def tglu(unit: TGLU, mentions: Features, entities: Features) -> Tensor:
    """S_T with every context vector, ``[entities, mentions, entity tokens, d]``."""
    query = unit.query(entities.text_local)[:, None]
    key, value = unit.key(mentions.text_local)[None], unit.value(mentions.text_local)[None]
    logits = query @ key.mT / math.sqrt(query.shape[-1])  # [entities, mentions, entity tokens, mention tokens]
    if unit.mask_padding:
        logits = logits.masked_fill(mentions.text_mask[None, :, None].eq(0), -torch.inf)
    context = torch.softmax(logits, dim=-1) @ value
    if unit.mask_padding:
        real = entities.text_mask[:, None, :, None].to(context.dtype)
        mean = (context * real).sum(dim=2) / real.sum(dim=2)
    else:
        mean = context.mean(dim=2)
    entity_context = unit.context(entities.text_global)[:, None]
    global_to_local = (entity_context * unit.norm(mean)).sum(dim=-1).T
    return (mentions.text_global @ entities.text_global.T + global_to_local) / 2


def vdlu(unit: VDLU, mentions: Features, entities: Features) -> Tensor:
    """S_V with a vector for every pair, ``[mentions, entities, d]`` and ``[entities, mentions, d]``."""
    entity_to_mention = _dual_gate(unit.entity_to_mention, entities, mentions).T
    return (entity_to_mention + _dual_gate(unit.mention_to_entity, mentions, entities)) / 2


def _dual_gate(gate: DualGate, queries: Features, keys: Features) -> Tensor:
    """One direction, ``[queries, keys]``."""
    query, key = gate.global_(queries.image_global)[:, None], gate.global_(keys.image_global)
    pooled = gate.local(keys.image_local).mean(dim=1)
    mixed = gate.mix(gate.norm_sum(pooled + query))  # [queries, keys, d]
    gated = torch.tanh(gate.gate(mixed)) * mixed + key
    return (gate.norm(gated) * gate.norm(query)).sum(dim=-1)


def cmfu(unit: CMFU, mentions: Features, entities: Features) -> Tensor:
    """S_C, with both sides fused again for every batch."""
    return _fused(unit, mentions) @ _fused(unit, entities).T


def _fused(unit: CMFU, features: Features) -> Tensor:
    text, image = unit.text(features.text_global)[:, None], unit.image(features.image_local)
    visual = (torch.softmax(text @ image.mT, dim=-1) @ image).squeeze(1)
    return unit.norm(torch.tanh(unit.gate(text[:, 0])) * text[:, 0] + visual)


_UNITS: dict[type[Unit], Callable[..., Tensor]] = {TGLU: tglu, VDLU: vdlu, CMFU: cmfu}


def _unit(unit: Any) -> Callable[[Features, Features], Tensor]:
    if type(unit) not in _UNITS:
        raise ConfigError(
            f"The benchmark compares with the published model, which has no unit {type(unit).__name__}. Give a run "
            "whose units are TGLU, VDLU and CMFU."
        )
    function = _UNITS[type(unit)]
    return lambda mentions, entities: function(unit, mentions, entities)


def _parts(features: Features, size: int) -> Iterator[Features]:
    for start in range(0, len(features.text_global), size):
        yield features.rows(slice(start, start + size))


def _moved(features: Features, device: str | None) -> Features:
    return features if device is None else features.map(lambda field: field.to(device))
