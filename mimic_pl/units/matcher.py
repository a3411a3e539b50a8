"""The matcher: shared norms, units and their combination, from features of both sides to named scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import BasePruningMethod

from mimic_pl.construction import Recorded
from mimic_pl.errors import ConfigError
from mimic_pl.features import FeatureDims, Features
from mimic_pl.units.base import Bounds, Side, Unit, UnitFactory, at_pairs
from mimic_pl.units.cmfu import CMFU
from mimic_pl.units.states import States
from mimic_pl.units.tglu import TGLU
from mimic_pl.units.vdlu import VDLU

MatcherFactory = Callable[[FeatureDims, Mapping[str, UnitFactory]], "Matcher"]
"""A matcher as given in a configuration: class and arguments, except the widths and the units."""

OVERALL = "overall"


def published_units() -> dict[str, UnitFactory]:
    """The three units of the paper with their published sizes: ``text``, ``vision`` and ``cross_modal``."""
    return {"text": TGLU, "vision": VDLU, "cross_modal": CMFU}


class Matcher(Recorded, nn.Module):
    """Scores every mention against every entity, by each unit and overall (paper section 3.3).

    Four LayerNorms, shared by mentions and entities, precede the units; the overall score is the mean of the units'
    scores. A subclass may combine them differently (:meth:`combine`) or rerank the top entities (:meth:`rerank`).

    Args:
        dims: Widths of the encoder's features.
        units: Named factories of the units.

    Raises:
        ConfigError: There is no unit, something is not a unit, or a unit's name is ``overall`` or reserved by torch.
    """

    scoring_only: tuple[str, ...] = ()
    """Own parameters and buffers on which no entity's state depends: an index stays valid when they change."""

    def __init__(self, dims: FeatureDims, units: Mapping[str, UnitFactory]) -> None:
        super().__init__()
        if not units or OVERALL in units:
            raise ConfigError(
                f"A model needs at least one unit, and none may be called {OVERALL!r}, the name of the overall score "
                f"(got {list(units)}). Name units after what they compare, such as text, vision or cross_modal."
            )
        self.text_global_norm = nn.LayerNorm(dims.text)
        self.text_local_norm = nn.LayerNorm(dims.text)
        self.image_global_norm = nn.LayerNorm(dims.image)
        self.image_local_norm = nn.LayerNorm(dims.image)
        built = {name: factory(dims) for name, factory in units.items()}
        for name, unit in built.items():
            if not isinstance(unit, Unit):
                raise ConfigError(
                    f"The unit {name!r} is a {type(unit).__name__}, not a mimic_pl.units.Unit. Derive its class from "
                    "Unit."
                )
            if hasattr(nn.ModuleDict, name) or "." in name:
                raise ConfigError(f"A unit cannot be called {name!r}: the name is reserved by torch. Rename the unit.")
            unit.name = name
        self.units = nn.ModuleDict(built)
        if not self.combined:
            raise ConfigError(
                f"None of the units {list(units)} has a part in the overall score. Add one, such as the published ones."
            )

    @property
    def combined(self) -> tuple[str, ...]:
        """Names of the units that have a part in the overall score (:attr:`Unit.in_overall`)."""
        return tuple(name for name, unit in self.named_units() if unit.in_overall)

    @property
    def score_names(self) -> tuple[str, ...]:
        """``overall`` and the names of the units."""
        return (OVERALL, *self.units)

    @property
    def cheap_score_names(self) -> tuple[str, ...]:
        """``overall`` and the names of the units that are not expensive."""
        return (OVERALL, *(name for name, unit in self.named_units() if not unit.expensive))

    def mention(self, features: Features) -> States:
        """States of mentions by unit."""
        normed = self.norm(features)
        return {name: unit.mention(normed) for name, unit in self.named_units()}

    def entity(self, features: Features) -> States:
        """States of entities by unit, as stored in the index."""
        normed = self.norm(features)
        return {name: unit.entity(normed) for name, unit in self.named_units()}

    def score(self, mentions: States, entities: States) -> dict[str, Tensor]:
        """Scores by name, ``overall`` and each unit's, each ``[mentions, entities]``."""
        scores = {name: unit.score(mentions[name], entities[name]) for name, unit in self.named_units()}
        return {OVERALL: self.overall(scores), **scores}

    def overall(self, scores: Mapping[str, Tensor]) -> Tensor:
        """Overall score of pairs from the scores of all units: what :meth:`combine` makes of :attr:`combined`."""
        return self.combine({name: scores[name] for name in self.combined})

    def combine(self, scores: dict[str, Tensor]) -> Tensor:
        """Overall score of pairs from the :attr:`combined` units' scores: S = (S_T + S_V + S_C) / 3, of the same shape.

        Each pair is combined independently. A subclass that overrides it declares in :attr:`monotone` whether the
        overall score never decreases when a unit's score increases.
        """
        return torch.stack(list(scores.values())).mean(dim=0)

    @property
    def monotone(self) -> bool:
        """Whether bounds of the units' scores bound the overall score; if not, ranking computes every score.

        True for the mean. A subclass that overrides :meth:`combine` may override this too.
        """
        return type(self).combine is Matcher.combine

    @property
    def reads_padding(self) -> bool:
        """Whether any unit's score depends on padding tokens."""
        return any(unit.reads_padding for _, unit in self.named_units())

    def prepare(self, mentions: States) -> States:
        """Add what :meth:`bounds` needs to the mentions' states."""
        return {name: unit.prepare(mentions[name]) for name, unit in self.named_units()}

    def bounds(self, mentions: States, entities: States) -> dict[str, Bounds]:
        """Bounds of the scores by name, ``overall`` and each unit's, each ``[mentions, entities]``.

        Args:
            mentions: Prepared states of mentions.
            entities: States of entities.
        """
        return self._with_overall(
            {name: unit.bounds(mentions[name], entities[name]) for name, unit in self.named_units()}
        )

    def tighten(
        self, bounds: Mapping[str, Bounds], mentions: States, entities: States, rows: Tensor, columns: Tensor
    ) -> dict[str, Bounds]:
        """Tighter bounds of selected pairs by name, each ``[pairs]`` (see :meth:`Unit.tighten`).

        Args:
            bounds: What :meth:`bounds` returned for these states.
            mentions: Prepared states of mentions.
            entities: States of entities.
            rows: Mentions of the pairs, ascending, int64 ``[pairs]``.
            columns: Entities of the pairs, int64 ``[pairs]``.
        """
        tighter = {}
        for name, unit in self.named_units():
            lower = at_pairs(bounds[name].lower, rows, columns)
            if bounds[name].exact:
                tighter[name] = Bounds(lower, lower)
                continue
            upper = at_pairs(bounds[name].upper, rows, columns)
            own = unit.tighten(mentions[name], entities[name], bounds[name], rows, columns)
            if own is not None:
                lower, upper = torch.maximum(lower, own.lower), torch.minimum(upper, own.upper)
            tighter[name] = Bounds(lower, upper)
        return self._with_overall(tighter)

    def _with_overall(self, bounds: dict[str, Bounds]) -> dict[str, Bounds]:
        lower = self.overall({name: bound.lower for name, bound in bounds.items()})
        exact = all(bounds[name].exact for name in self.combined)
        upper = lower if exact else self.overall({name: bound.upper for name, bound in bounds.items()})
        return {OVERALL: Bounds(lower, upper), **bounds}

    def pairs(self, mentions: States, entities: States, names: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Scores of aligned pairs by unit, each ``[pairs]``.

        Args:
            mentions: States of mentions.
            entities: States of as many entities.
            names: Units to score with; all by default.
        """
        wanted = set(self.units if names is None else names)
        return {name: unit.pairs(mentions[name], entities[name]) for name, unit in self.named_units() if name in wanted}

    def query_vectors(self, mentions: States, unit: str | None = None) -> Tensor:
        """Vectors whose products with :meth:`key_vectors` stand for overall scores, ``[mentions, width]``.

        They are the combined units' vectors (:meth:`Unit.query_vector`) side by side, each with the square root of what
        a score of 1 of the unit contributes to the overall score. The width is 0 if no unit has vectors.

        Args:
            mentions: States of mentions.
            unit: A unit whose vectors stand for overall scores by themselves, instead of all.

        Raises:
            ConfigError: There is no such unit, or it has no vectors.
        """
        if unit is not None:
            return _vectors_of(unit, self._unit(unit).query_vector(mentions[unit]))
        scales = {name: share.sign() * share.abs().sqrt() for name, share in self._contributions().items()}
        return _side_by_side({name: self._unit(name).query_vector(mentions[name]) for name in scales}, scales, mentions)

    def key_vectors(self, entities: States, unit: str | None = None) -> Tensor:
        """Vectors of entities for :meth:`query_vectors`, ``[entities, width]``."""
        if unit is not None:
            return _vectors_of(unit, self._unit(unit).key_vector(entities[unit]))
        scales = {name: share.abs().sqrt() for name, share in self._contributions().items()}
        return _side_by_side({name: self._unit(name).key_vector(entities[name]) for name in scales}, scales, entities)

    def vector_products(self, mentions: States, entities: States) -> Tensor | None:
        """Products of :meth:`query_vectors` with :meth:`key_vectors`, ``[mentions, entities]``; None without vectors.

        Units' vectors are multiplied one by one: for large blocks, joining them takes longer than multiplying them.
        """
        total: Tensor | None = None
        for name, share in self._contributions().items():
            query = self._unit(name).query_vector(mentions[name])
            key = None if query is None else self._unit(name).key_vector(entities[name])
            if query is not None and key is not None:
                query = share * query
                total = query @ key.T if total is None else total.addmm_(query, key.T)
        return total

    def _unit(self, name: str) -> Unit:
        if name not in self.units:
            raise ConfigError(f"There is no unit {name!r}: the model has {list(self.units)}.")
        return cast(Unit, self.units[name])

    @torch.no_grad()
    def _contributions(self) -> dict[str, Tensor]:
        """What a score of 1 of each combined unit adds to the overall score, scalars."""
        ones = torch.eye(len(self.combined), device=self.text_global_norm.weight.device)
        overall = self.combine(
            {name: torch.cat([row, row.new_zeros(1)]) for name, row in zip(self.combined, ones, strict=True)}
        )
        return dict(zip(self.combined, overall[:-1] - overall[-1], strict=True))

    def row(self, mention: States, entities: States, names: Iterable[str]) -> dict[str, Tensor]:
        """Scores of one mention by these units, each ``[entities]``: for many pairs faster than :meth:`pairs`.

        Args:
            mention: State of the mention, tensors ``[1, ...]``.
            entities: States of entities.
            names: Units to score with.
        """
        wanted = set(names)
        return {
            name: unit.score(mention[name], entities[name])[0] for name, unit in self.named_units() if name in wanted
        }

    @property
    def has_totals(self) -> bool:
        """Whether any unit's score depends on totals of the knowledge base."""
        return any(unit.has_totals for _, unit in self.named_units())

    def totals(self, states: States) -> dict[str, Tensor]:
        """The units' totals over mentions or entities, int64, by unit and name, such as ``image.sum``.

        See :meth:`Unit.totals`.
        """
        return {
            f"{name}.{own}": total
            for name, unit in self.named_units()
            for own, total in unit.totals(states[name]).items()
        }

    def set_totals(self, side: Side, totals: Mapping[str, Tensor]) -> None:
        """Use the totals of all entities, or of a sample of mentions, for scores (see :meth:`Unit.set_totals`).

        Args:
            side: ``mentions`` or ``entities``.
            totals: Sums of :meth:`totals`; units that have none are left as they are.
        """
        for name, unit in self.named_units():
            own = {key.removeprefix(f"{name}."): total for key, total in totals.items() if key.startswith(f"{name}.")}
            if own:
                unit.set_totals(side, own)

    def rerank(self, mentions: States, entities: States, scores: Mapping[str, Tensor]) -> Tensor:
        """New overall scores of each mention's top entities, ``[mentions, k]``: a list-wise second ranking stage.

        Override it in a subclass; the default keeps the scores. Only the top k are reordered, and ties keep their
        order. The scores of one mention's list must not depend on other mentions.

        Args:
            mentions: States of mentions, tensors ``[mentions, ...]``.
            entities: States of their top entities, best first, tensors ``[mentions, k, ...]``.
            scores: Named scores of their top entities, each ``[mentions, k]``.

        Example:
            >>> class NormalizedMatcher(Matcher):
            ...     def rerank(self, mentions, entities, scores):
            ...         lists = [scores[name].log_softmax(dim=1) for name in self.units]  # each unit's vote
            ...         return torch.stack(lists).sum(dim=0)
        """
        return scores[OVERALL]

    @property
    def reranks(self) -> bool:
        """Whether :meth:`rerank` is overridden; if not, ranking does not fetch the top entities' states."""
        return type(self).rerank is not Matcher.rerank

    def gates(self, mentions: Features, entities: Features) -> dict[str, dict[str, Tensor]]:
        """Gate values by unit and gate, without units that have no gates (see :meth:`Unit.gates`).

        Args:
            mentions: Features of mentions from the encoder.
            entities: Features of entities from the encoder.
        """
        sides = self.norm(mentions), self.norm(entities)
        values = {name: unit.gates(*sides) for name, unit in self.named_units()}
        return {name: gates for name, gates in values.items() if gates}

    def named_units(self) -> list[tuple[str, Unit]]:
        """Names and units."""
        return [(name, cast(Unit, unit)) for name, unit in self.units.items()]

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Matcher:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # another device or dtype
        self._apply_pruning()
        return self

    def _apply_pruning(self) -> None:
        """Recompute pruned weights; torch does so only when a layer is called, and units read weights directly."""
        for layer in self.modules():
            for hook in layer._forward_pre_hooks.values():
                if isinstance(hook, BasePruningMethod):
                    hook(layer, None)

    def norm(self, features: Features) -> Features:
        """Apply the shared norms: the features that the units get."""
        self._apply_pruning()
        return features._replace(
            text_global=self.text_global_norm(features.text_global),
            text_local=self.text_local_norm(features.text_local),
            image_global=self.image_global_norm(features.image_global),
            image_local=self.image_local_norm(features.image_local),
        )


def _vectors_of(unit: str, vectors: Tensor | None) -> Tensor:
    if vectors is None:
        raise ConfigError(
            f"The unit {unit!r} has no vectors to search by (Unit.query_vector). Name another, such as a CompactVector."
        )
    return vectors


def _side_by_side(vectors: Mapping[str, Tensor | None], scales: Mapping[str, Tensor], states: States) -> Tensor:
    """The vectors of the units that have any, each times its scale, ``[rows, width]``."""
    parts = [scales[name] * vector for name, vector in vectors.items() if vector is not None]
    if parts:
        return torch.cat(parts, dim=-1)
    rows = len(next(iter(next(iter(states.values())).values())))
    return next(iter(scales.values())).new_zeros(rows, 0)
