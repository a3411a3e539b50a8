"""Reranking: list-wise rescoring of the top entities, the second stage of ranking."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from mimic_pl.errors import ConfigError, NonFiniteScoreError
from mimic_pl.ranking.index import EntityIndex
from mimic_pl.ranking.stored_states import pick
from mimic_pl.units import Matcher, States


def rerank(
    matcher: Matcher, mentions: States, top_entities: Tensor, top_scores: Mapping[str, Tensor], index: EntityIndex
) -> Tensor:
    """Compute new overall scores of each mention's top entities, ``[mentions, k]``; collective.

    The states of all top entities of a block are on the index's device at once.

    Args:
        matcher: Its :meth:`~mimic_pl.units.Matcher.rerank` scores the lists.
        mentions: States of this process's mentions.
        top_entities: Their top entities, int64 ``[mentions, k]``.
        top_scores: Scores of the top entities by name, each ``[mentions, k]``.
        index: All entities, across all processes.

    Raises:
        ConfigError: The new scores have the wrong shape.
        NonFiniteScoreError: A new score is NaN or infinite; all processes raise it for the first such mention.
    """
    everyone = torch.cat([order for (order,) in index.processes.gather([top_entities])])
    distinct = torch.unique(everyone)
    rows = torch.searchsorted(distinct, top_entities)
    picked = pick(index.gather(distinct), rows.flatten())
    entities = {
        unit: {name: tensor.view(*rows.shape, *tensor.shape[1:]) for name, tensor in state.items()}
        for unit, state in picked.items()
    }
    scores = matcher.rerank(mentions, entities, top_scores)
    if scores.shape != rows.shape:
        raise ConfigError(
            f"{type(matcher).__name__}.rerank returns {list(scores.shape)} for {len(rows)} mentions with "
            f"{rows.shape[1]} entities each. Return one score for each entity: {list(rows.shape)}."
        )
    scores = scores.float()
    gathered = torch.cat([part for (part,) in index.processes.gather([scores])])
    wrong = (~torch.isfinite(gathered)).nonzero()
    if len(wrong):
        mention, column = wrong[0].tolist()
        value, entity = gathered[mention, column].item(), int(everyone[mention, column])
        raise NonFiniteScoreError(
            f"The reranked score of mention {mention} of this block with entity {entity} is {value}.",
            "overall",
            mention,
            entity,
            value,
        )
    return scores
