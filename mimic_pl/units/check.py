"""A check for authors of units: does a unit meet the requirements of training and ranking?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.units.base import Bounds, State, Unit
from mimic_pl.units.matcher import OVERALL, Matcher
from mimic_pl.units.states import States

_MENTIONS, _ENTITIES, _TOKENS, _PATCHES = 6, 9, 7, 5
_TOLERANCE = 1e-4
"""Tolerance relative to the largest score, for values that must agree up to float32 rounding."""

_COARSE = 1e-2
"""The same for scores in the precision of training, such as bfloat16."""


def check_unit(unit: Unit, extra: Mapping[str, Callable[[int], Tensor]] | None = None, seed: int = 0) -> None:
    """Check a unit on random features.

    - States have one row per mention or entity, and scores are finite, ``[mentions, entities]``.
    - A batch of one works; batching, blocking and order do not change scores.
    - ``prepare`` keeps the mentions' state and only adds tensors to it; bounds of ``bounds`` and ``tighten`` hold.
    - ``pairs`` equals the diagonal of ``score`` for any number of pairs.
    - ``score`` and ``pairs`` work in float64 and agree with float32.
    - Unless ``reads_padding``, padding tokens change nothing.
    - Every trainable parameter gets a gradient from the scores (not required of a unit with a :meth:`Unit.loss`).

    Args:
        unit: The unit, on the CPU; it is not modified.
        extra: Makes the tensors that the unit reads from ``features.extra``, by name: functions from a number of
            records to a tensor ``[records, ...]``, such as ``lambda count: torch.randn(count, 3)``.
        seed: Seed of the random features.

    Raises:
        ConfigError: A requirement is not met; the message says which, and by how much.

    Example:
        >>> from mimic_pl.units import GlobalCosine
        >>> check_unit(GlobalCosine(FeatureDims(text=8, image=4)))
    """
    name = type(unit).__name__
    unit = copy.deepcopy(unit).float().eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        mentions = random_features(_MENTIONS, unit.dims, extra or {})
        entities = random_features(_ENTITIES, unit.dims, extra or {})
    with torch.no_grad():
        of_mentions = _checked_state(name, "mention", unit.mention(mentions), _MENTIONS)
        states = of_mentions, _checked_state(name, "entity", unit.entity(entities), _ENTITIES)
        scores = unit.score(*states)
        problem = f"score returns {list(scores.shape)} for {_MENTIONS} mentions and {_ENTITIES} entities"
        _require(scores.shape == (_MENTIONS, _ENTITIES), name, f"{problem}; it must be [mentions, entities]")
        _require(bool(torch.isfinite(scores).all()), name, "score returns values that are not finite")
        _check_batches(name, unit, mentions, entities, scores)
        _check_blocks(name, unit, *states, scores)
        prepared = _checked_state(name, "prepare", unit.prepare(of_mentions), _MENTIONS)
        missing = sorted(of_mentions.keys() - prepared.keys())
        _require(not missing, name, f"prepare drops {missing} from the mentions' state; it may only add to the state")
        _check_bounds(name, unit, prepared, states[1], scores)
        _check_pairs(name, unit, prepared, states[1], scores)
        _check_float64(name, unit, mentions, entities, scores)
        if not unit.reads_padding:
            _check_padding(name, unit, mentions, entities, scores)
    if type(unit).loss is Unit.loss:
        _check_gradients(name, unit, mentions, entities)


def require_independent_pairs(matcher: Matcher, mentions: States, entities: States) -> None:
    """Check on a few states that a score depends on its pair alone: ranking scores the same pair in different blocks.

    Args:
        matcher: Scores the pairs.
        mentions: States of mentions, of which the first ones are used.
        entities: States of entities, likewise.

    Raises:
        ConfigError: A unit's score, or the overall score, depends on the other pairs of a block.
    """
    mentions, entities = _first_rows(mentions, _MENTIONS), _first_rows(entities, _ENTITIES)
    count = max(1, len(next(iter(next(iter(entities.values())).values()))) // 2)
    alone = matcher.score(_first_rows(mentions, 1), _first_rows(entities, count))
    together = matcher.score(mentions, entities)
    for name in (*matcher.units, OVERALL):
        expected = together[name][:1, :count]
        difference = float((alone[name] - expected).abs().max())
        if difference > _COARSE * max(1.0, float(expected.abs().max())):  # NaN is reported by ranking
            scorer = matcher if name == OVERALL else matcher.units[name]
            raise ConfigError(
                f"The score {name!r} of {type(scorer).__name__} cannot be ranked: it changes by {difference:.3g} with "
                "the other pairs that are scored at once, but must depend on its pair alone. Do not normalise over "
                "mentions or entities in score; mimic_pl.units.check_unit(unit) checks a unit."
            )


def _first_rows(states: States, count: int) -> States:
    return {name: _rows(state, slice(count)) for name, state in states.items()}


def random_features(count: int, dims: FeatureDims, extra: Mapping[str, Callable[[int], Tensor]]) -> Features:
    """Random features of texts of different lengths, drawn from torch's global generator.

    Args:
        count: Number of mentions or entities.
        dims: Feature widths.
        extra: Makes additional tensors, by name, from a number of records.
    """
    lengths = torch.randint(1, _TOKENS + 1, (count, 1))
    return Features(
        text_global=torch.randn(count, dims.text),
        text_local=torch.randn(count, _TOKENS, dims.text),
        image_global=torch.randn(count, dims.image),
        image_local=torch.randn(count, _PATCHES, dims.image),
        text_mask=(torch.arange(_TOKENS) < lengths).long(),
        extra={
            **{name: torch.randn(count, width) for name, width in dims.pretrained.items()},
            **{name: make(count) for name, make in extra.items()},
        },
    )


def _checked_state(name: str, side: str, state: State, count: int) -> State:
    _require(len(state) > 0, name, f"{side} returns no tensors; it must return what score needs of that side")
    for key, tensor in state.items():
        _require(
            tensor.ndim > 0 and len(tensor) == count,
            name,
            f"the state {key!r} of {count} records has shape {list(tensor.shape)}; its first dimension must be {count}",
        )
    return state


def _check_batches(name: str, unit: Unit, mentions: Features, entities: Features, scores: Tensor) -> None:
    """Check states of single records, and of records in another order."""
    single_mentions, single_entities = (
        [features.rows(slice(row, row + 1)) for row in range(count)]
        for features, count in ((mentions, _MENTIONS), (entities, _ENTITIES))
    )
    rows = [torch.cat([unit(one, other) for other in single_entities], dim=1) for one in single_mentions]
    alone = torch.cat(rows)
    _require_equal(name, "scores of records encoded one by one and together", alone, scores)
    back = torch.arange(_ENTITIES).flip(0)
    _require_equal(name, "scores of entities in another order", unit(mentions, entities.rows(back)), scores[:, back])


def _check_blocks(name: str, unit: Unit, mentions: State, entities: State, scores: Tensor) -> None:
    """Check blocks of states, since ranking scores blocks of any size."""
    blocks = [unit.score(mentions, _rows(entities, slice(start, start + 4))) for start in range(0, _ENTITIES, 4)]
    _require_equal(name, "scores of entities in blocks and at once", torch.cat(blocks, dim=1), scores)
    rows = [unit.score(_rows(mentions, slice(m, m + 1)), entities) for m in range(_MENTIONS)]
    _require_equal(name, "scores of mentions one by one and at once", torch.cat(rows), scores)


def _check_pairs(name: str, unit: Unit, mentions: State, entities: State, scores: Tensor) -> None:
    """Check selected pairs, since ranking scores any number of them at once, with prepared states."""
    grid = torch.cartesian_prod(torch.arange(_MENTIONS), torch.arange(_ENTITIES))
    for size in (len(grid), 7):
        pairs = []
        for m, e in (part.unbind(dim=1) for part in torch.split(grid, size)):
            pairs.append(unit.pairs(_rows(mentions, m), _rows(entities, e)))
            _require(pairs[-1].shape == m.shape, name, f"pairs returns {list(pairs[-1].shape)} for {len(m)} pairs")
        _require_equal(name, f"pairs, {size} at once, and score", torch.cat(pairs).view_as(scores), scores)


def _check_bounds(name: str, unit: Unit, mentions: State, entities: State, scores: Tensor) -> None:
    bounds = unit.bounds(mentions, entities)
    _require_bounds(name, "bounds", bounds, scores)
    rows, columns = torch.ones_like(scores).nonzero(as_tuple=True)
    if bounds.exact:
        return
    for part in (slice(None), slice(2, None, 3)):
        tighter = unit.tighten(mentions, entities, bounds, rows[part], columns[part])
        if tighter is not None:
            _require_bounds(name, "bounds of tighten", tighter, scores[rows[part], columns[part]])


def _require_bounds(name: str, what: str, bounds: Bounds, scores: Tensor) -> None:
    for side, bound in {"lower": bounds.lower, "upper": bounds.upper}.items():
        _require(bound.shape == scores.shape, name, f"the {side} bound has shape {list(bound.shape)}")
        _require(not bool(bound.isnan().any()), name, f"the {side} bound contains NaN")
    excess = torch.maximum(bounds.lower - scores, scores - bounds.upper).max()
    margin = _margin(scores)
    _require(bool(excess <= margin), name, f"a score is outside its {what} by {excess:.3g} (tolerance: {margin:.1g})")


def _check_float64(name: str, unit: Unit, mentions: Features, entities: Features, scores: Tensor) -> None:
    """Check float64, since near ties are resolved in it."""
    double = copy.deepcopy(unit).double()
    mentions, entities = mentions.to(torch.float64), entities.to(torch.float64)
    exact = double(mentions, entities)
    _require(exact.dtype == torch.float64, name, f"in float64 its scores are {exact.dtype}")
    _require_equal(name, "scores in float64 and in float32", exact, scores)
    states = double.mention(mentions), double.entity(entities)
    size = min(_MENTIONS, _ENTITIES)
    pairs = double.pairs(*(_rows(state, slice(size)) for state in states))
    _require(pairs.dtype == torch.float64, name, f"in float64 its pairs are {pairs.dtype}")
    _require_equal(name, "pairs in float64 and scores in float32", pairs, scores[:size, :size].diagonal())


def _check_padding(name: str, unit: Unit, mentions: Features, entities: Features, scores: Tensor) -> None:
    def other_padding(features: Features) -> Features:
        padding = features.text_mask.eq(0)[:, :, None]
        return features._replace(text_local=features.text_local.masked_fill(padding, 7.0))

    changed = unit(other_padding(mentions), other_padding(entities))
    _require_equal(name, "scores with different padding (reads_padding is False)", changed, scores)


def _check_gradients(name: str, unit: Unit, mentions: Features, entities: Features) -> None:
    unit.zero_grad()
    trainable = {key: parameter for key, parameter in unit.named_parameters() if parameter.requires_grad}
    if trainable:
        unit(mentions, entities).square().sum().backward()
    without = [key for key, parameter in trainable.items() if parameter.grad is None]
    _require(not without, name, f"no gradient reaches {', '.join(without)}")


def _rows(state: State, index: slice | Tensor) -> State:
    return {key: tensor[index] for key, tensor in state.items()}


def _margin(scores: Tensor) -> float:
    return _TOLERANCE * max(1.0, float(scores.abs().max()))


def _require_equal(name: str, what: str, one: Tensor, other: Tensor) -> None:
    difference = float((one.double() - other.double()).abs().max())
    _require(difference <= _margin(other), name, f"{what} differ by {difference:.3g} (tolerance: {_margin(other):.1g})")


def _require(holds: bool, name: str, problem: str) -> None:
    if not holds:
        raise ConfigError(f"The unit {name} cannot be used: {problem}.")
