"""The worst mentions of a run, with the details needed to see what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mimic_pl.evaluated_run import Record, read_records
from mimic_pl.linking.attention_and_gates import Patches, Token, over_patches, over_words
from mimic_pl.linking.encoded import Encoded
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.records import Entity, Mention
from mimic_pl.report.loaded import LoadedRun


@dataclass(frozen=True)
class RankedEntity:
    """An entity ranked for a mention.

    Attributes:
        entity: The entity.
        rank: Rank by the overall score.
        gold: Whether it is a gold of the mention.
        scores: Scores by name.
        words: Attention to the mention's tokens; may be empty.
    """

    entity: Entity
    rank: int
    gold: bool
    scores: dict[str, float]
    words: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A wrongly linked mention: its gold is not ranked first.

    Attributes:
        mention: The mention.
        rank: Rank of the best-ranked gold by score name.
        margin: Overall score of the first candidate minus that of the gold.
        gold: The best-ranked gold.
        candidates: Top candidates, best first; the gold may be among them.
        patches: Attention of the mention's text to its image.
    """

    mention: Mention
    rank: dict[str, int]
    margin: float
    gold: RankedEntity
    candidates: list[RankedEntity]
    patches: Patches | None


def worst_cases(loaded: LoadedRun, worst: int, candidates: int = 5) -> list[Case]:
    """Find the mentions with the worst-ranked golds; ties are broken by the margin of the first candidate.

    Correctly linked mentions and those without a gold in the knowledge base are excluded.

    Args:
        loaded: The run.
        worst: Maximum number of mentions.
        candidates: Number of candidates per mention.

    Raises:
        ConfigError: ``worst`` or ``candidates`` is below 1.
    """
    require_ranges({"worst": COUNT, "candidates": COUNT}, {"worst": worst, "candidates": candidates}, "")
    return cases_of(loaded, wrongly_linked(loaded), 0, worst, candidates)


def wrongly_linked(loaded: LoadedRun) -> list[tuple[int, Record]]:
    """Index in the test split and prediction of each wrongly linked mention, by descending rank of its gold."""
    indexed = zip(loaded.mention_indices, read_records(loaded.run.folder), strict=True)
    wrong = [(index, record) for index, record in indexed if (record["rank"]["overall"] or 0) > 1]
    return sorted(wrong, key=lambda pair: -pair[1]["rank"]["overall"])


def cases_of(
    loaded: LoadedRun, wrong: Sequence[tuple[int, Record]], start: int, count: int, candidates: int = 5
) -> list[Case]:
    """A part of the wrongly linked mentions, in the order of :func:`worst_cases`; only these are encoded, and ties.

    Args:
        loaded: The run.
        wrong: All of :func:`wrongly_linked`, or some of them.
        start: Number of mentions to skip.
        count: Maximum number of mentions.
        candidates: Number of candidates per mention.
    """
    ranks = [record["rank"]["overall"] for _, record in wrong]
    shown = ranks[start : start + count]
    if not shown:
        return []
    start -= sum(rank > shown[0] for rank in ranks)
    wrong = [pair for pair, rank in zip(wrong, ranks, strict=True) if shown[0] >= rank >= shown[-1]]
    mentions = loaded.mentions([index for index, _ in wrong])
    golds, scores = _best_golds(loaded, mentions, [index for index, _ in wrong])
    margins = [
        record["candidates"][0]["scores"]["overall"] - own["overall"]
        for (_, record), own in zip(wrong, scores, strict=True)
    ]
    order = sorted(range(len(wrong)), key=lambda row: (-wrong[row][1]["rank"]["overall"], -margins[row]))
    order = order[start : start + count]
    return _cases(
        loaded,
        [wrong[row] for row in order],
        Encoded(mentions.features.rows(torch.tensor(order)), mentions.input_ids[order], mentions.attention_mask[order]),
        [golds[row] for row in order],
        [scores[row] for row in order],
        [margins[row] for row in order],
        candidates,
    )


def _best_golds(
    loaded: LoadedRun, mentions: Encoded, indices: Sequence[int]
) -> tuple[list[int], list[dict[str, float]]]:
    """Position and scores of each mention's gold with the highest overall score."""
    rows, positions = zip(*((row, gold) for row, i in enumerate(indices) for gold in loaded.golds(i)), strict=True)
    scores = loaded.score(mentions.features.rows(torch.tensor(rows)), loaded.entities(positions).features)
    best: dict[int, int] = {}
    overall = scores["overall"].tolist()
    for pair, row in enumerate(rows):
        if row not in best or overall[pair] > overall[best[row]]:
            best[row] = pair
    pairs = [best[row] for row in range(len(indices))]
    return [positions[p] for p in pairs], [{name: float(s[p]) for name, s in scores.items()} for p in pairs]


def _cases(
    loaded: LoadedRun,
    wrong: Sequence[tuple[int, Record]],
    mentions: Encoded,
    golds: Sequence[int],
    scores: Sequence[dict[str, float]],
    margins: Sequence[float],
    candidates: int,
) -> list[Case]:
    known, entities = loaded.data.entities.positions, loaded.data.entities
    firsts = [known[record["candidates"][0]["qid"]] for _, record in wrong]
    patches = over_patches(loaded.model.matcher, mentions.features)
    words_of_gold, words_of_first = (
        over_words(loaded.model, mentions, loaded.entities(positions)) for positions in (golds, firsts)
    )
    cases = []
    for row, (index, record) in enumerate(wrong):
        mention = loaded.data.mentions["test"][index]
        shown = [
            RankedEntity(
                entities[known[candidate["qid"]]],
                rank,
                candidate["qid"] in mention.golds,
                candidate["scores"],
                words_of_first[row] if rank == 1 else [],
            )
            for rank, candidate in enumerate(record["candidates"][:candidates], start=1)
        ]
        gold = RankedEntity(entities[golds[row]], record["rank"]["overall"], True, scores[row], words_of_gold[row])
        ranks = {name: rank for name, rank in record["rank"].items() if rank}
        cases.append(Case(mention, ranks, margins[row], gold, shown, patches[row] if patches else None))
    return cases
