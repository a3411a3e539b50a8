"""Why an entity has its rank: its scores unit by unit, their bounds, and the entities on top of the list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from mimic_pl.escaping import printable
from mimic_pl.ranking.engine import Ranker, in_float32
from mimic_pl.ranking.exact import ExactScores
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.units import Matcher, States


class ExplainedScore(NamedTuple):
    """One score of an entity.

    Attributes:
        score: What ranking orders by: computed in float64.
        lower: Its lower bound, which needs no attention; ranking scores a pair only where bounds leave its place open.
        upper: Its upper bound.
        rank: Its 1-based rank among all entities by this score.
    """

    score: float
    lower: float
    upper: float
    rank: int


@dataclass(frozen=True)
class Explanation:
    """Why an entity has its rank for a mention; printed, it is two small tables.

    Attributes:
        entity: The entity's id.
        num_entities: Entities in the index.
        scores: ``overall`` and each unit.
        competitors: Ids of the other entities at the top of the list, best first, with their scores by name. At equal
            scores the lower order number comes first.
    """

    entity: str
    num_entities: int
    scores: dict[str, ExplainedScore]
    competitors: dict[str, dict[str, float]]

    def __str__(self) -> str:
        """Both tables as text: the entity's scores, and the leads of the entities on top."""
        overall = self.scores["overall"]
        lines = [f"{self.entity}: rank {overall.rank:,} of {self.num_entities:,} by overall score", ""]
        rows = [["score", "rank", "value", "lower bound", "upper bound"]]
        for name, own in self.scores.items():
            rows.append([name, f"{own.rank:,}", *(f"{value:.4f}" for value in (own.score, own.lower, own.upper))])
        lines += [*_aligned(rows), "", f"Top of the others, and how far each is ahead of {self.entity}:", ""]
        rows = [["entity", *self.scores]]
        for entity, scores in self.competitors.items():
            rows.append([entity, *(f"{scores[name] - own.score:+.4f}" for name, own in self.scores.items())])
        lines += _aligned(rows)
        if any(scores["overall"] == overall.score for scores in self.competitors.values()):
            lines += ["", "Entities of equal score are in the order of their order numbers."]
        return printable("\n".join(lines))


@torch.no_grad()
def explain(matcher: Matcher, mention: States, entity: str, index: EntityIndex, top_k: int = 5) -> Explanation:
    """Explain an entity's rank for a mention.

    Where a matcher reranks, ranks and the order of the competitors are those after it, scores those before it.

    Args:
        matcher: Scores the mention against entities.
        mention: States of one mention, tensors ``[1, ...]``.
        entity: The entity's id.
        index: All entities, held by this process.
        top_k: How many competitors are listed.

    Raises:
        DataError: The index has no such entity.
    """
    order = index.order_of([entity])
    ranking = Ranker(top_k + 1)(matcher, mention, index, order[None])
    top = ranking.top_entities[0]
    top = top[top != order][:top_k]
    matcher = in_float32(matcher)
    exact = ExactScores(matcher, mention)

    def scores_of(numbers: Tensor) -> dict[str, list[float]]:
        rows = torch.zeros(len(numbers), dtype=torch.int64, device=numbers.device)
        scores = exact(rows, index.select(numbers).states)
        return {name: score.tolist() for name, score in scores.items()}

    own = scores_of(order)
    others = scores_of(top) if len(top) else {}  # a unit need not score no pairs
    prepared, entities, first = matcher.prepare(mention), index.select(order).states, torch.zeros_like(order)
    bounds = matcher.tighten(matcher.bounds(prepared, entities), prepared, entities, first, first)
    explained = {
        name: ExplainedScore(
            own[name][0], float(bounds[name].lower), float(bounds[name].upper), int(ranking.ranks[name])
        )
        for name in matcher.score_names
    }
    competitors = {
        id: {name: scores[place] for name, scores in others.items()} for place, id in enumerate(index.ids_of(top))
    }
    return Explanation(entity, len(index), explained, competitors)


def _aligned(rows: list[list[str]]) -> list[str]:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *numbers in rows:
        cells = [first.ljust(widths[0])]
        cells += [number.rjust(width) for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append("  ".join(cells))
    return lines
