"""The worst mentions of a run, with all that a person needs to see what went wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from mimic_pl.errors import ConfigError
from mimic_pl.records import Entity, Mention
from mimic_pl.report.attention import Patches, Token, over_patches, over_words, tokens_of
from mimic_pl.report.evaluated_run import Record, read_records
from mimic_pl.report.loaded import Encoded, LoadedRun


@dataclass(frozen=True)
class Shown:
    """An entity beside a mention.

    Attributes:
        entity: The entity.
        place: Its place in the ranking by the overall score.
        gold: Whether it is the mention's.
        scores: Its score by name.
        words: How it attends to the mention's words; empty where that is not shown.
    """

    entity: Entity
    place: int
    gold: bool
    scores: dict[str, float]
    words: list[Token] = field(default_factory=list)


@dataclass(frozen=True)
class Case:
    """A mention whose gold is not first.

    Attributes:
        mention: The mention.
        rank: Of the best-ranked gold, by score.
        margin: Overall score of the first candidate less that of the gold.
        gold: The best-ranked gold.
        candidates: The first ones, best first; the gold may be among them.
        patches: How the mention's text attends to its image.
    """

    mention: Mention
    rank: dict[str, int]
    margin: float
    gold: Shown
    candidates: list[Shown]
    patches: Patches | None


def worst_cases(loaded: LoadedRun, worst: int, candidates: int = 5) -> list[Case]:
    """The mentions whose golds rank worst; where ranks are equal, those that the first candidate beats most clearly.

    Mentions that are right, and those without a gold in the knowledge base, are none.

    Args:
        loaded: The run.
        worst: How many at most.
        candidates: Candidates of each.

    Raises:
        ConfigError: ``worst`` or ``candidates`` is below 1.
    """
    if worst < 1 or candidates < 1:
        raise ConfigError(f"worst is {worst} and candidates {candidates}; both must be positive.")
    records = read_records(loaded.run.folder)
    wrong = [(index, r) for index, r in zip(loaded.places, records, strict=True) if (r["rank"]["overall"] or 0) > 1]
    wrong.sort(key=lambda pair: -pair[1]["rank"]["overall"])
    if len(wrong) > worst:
        last = wrong[worst - 1][1]["rank"]["overall"]
        wrong = [pair for pair in wrong if pair[1]["rank"]["overall"] >= last]  # the margin decides between the last
    if not wrong:
        return []
    mentions = loaded.mentions([index for index, _ in wrong])
    golds, scores = _best_golds(loaded, mentions, [index for index, _ in wrong])
    margins = [
        record["candidates"][0]["scores"]["overall"] - own["overall"]
        for (_, record), own in zip(wrong, scores, strict=True)
    ]
    order = sorted(range(len(wrong)), key=lambda row: (-wrong[row][1]["rank"]["overall"], -margins[row]))[:worst]
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
    """Of each mention the gold with the highest overall score, its position and its scores."""
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
    words_of_gold = _words(loaded, mentions, golds)
    words_of_first = _words(loaded, mentions, firsts)
    cases = []
    for row, (index, record) in enumerate(wrong):
        mention = loaded.data.mentions["test"][index]
        shown = [
            Shown(
                entities[known[candidate["qid"]]],
                place,
                candidate["qid"] in mention.golds,
                candidate["scores"],
                words_of_first[row] if place == 1 else [],
            )
            for place, candidate in enumerate(record["candidates"][:candidates], start=1)
        ]
        gold = Shown(entities[golds[row]], record["rank"]["overall"], True, scores[row], words_of_gold[row])
        ranks = {name: rank for name, rank in record["rank"].items() if rank}
        cases.append(Case(mention, ranks, margins[row], gold, shown, patches[row] if patches else None))
    return cases


def _words(loaded: LoadedRun, mentions: Encoded, positions: Sequence[int]) -> list[list[Token]]:
    """How entities attend to the words of the mentions beside them; empty where nothing can tell."""
    tokenizer = loaded.model.processor.tokenizer.tokenizer
    weights = over_words(loaded.model.matcher, mentions.features, loaded.entities(positions).features)
    if weights is None:
        return [[] for _ in positions]
    return [
        tokens_of(tokenizer, ids.tolist(), mask.tolist(), own.tolist())
        for ids, mask, own in zip(mentions.input_ids, mentions.attention_mask, weights, strict=True)
    ]
