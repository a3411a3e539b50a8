"""All baselines of a data set: ranked, printed and written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from tqdm.auto import tqdm

from mimic_pl.baselines.bm25 import BM25
from mimic_pl.baselines.names import ExactName, NameSimilarity
from mimic_pl.baselines.ranking import BlockScorer, rank_all
from mimic_pl.baselines.zero_shot import Cosine, embed
from mimic_pl.callbacks.predictions import candidate_lists, prediction
from mimic_pl.callbacks.results import metrics_by_score, missing_golds
from mimic_pl.callbacks.tables import result_table
from mimic_pl.data import MELDataModule, Mention
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.encoders import Encoder
from mimic_pl.errors import ConfigError
from mimic_pl.files import write_file
from mimic_pl.metrics import rank_metrics
from mimic_pl.processor.template import TextTemplate

BASELINES = {
    "exact_name": "the mention is the entity's name, character by character",
    "name_similarity": "normalised Indel similarity of mention and name, lower-cased",
    "bm25": "BM25 of the mention's text against the entity's",
    "text_cosine": "zero-shot cosine of the encoder's text embeddings",
    "image_cosine": "zero-shot cosine of the encoder's image embeddings",
    "both_cosines": "mean of the two cosines",
}
"""What each baseline scores by, in the order in which they are printed. The cosines need an encoder."""

COSINES = ("text_cosine", "image_cosine", "both_cosines")

_Lazy = Callable[[], BlockScorer]


class _Side(NamedTuple):
    """What is ranked."""

    mentions: Sequence[Mention]
    entities: EntityTable


def run_baselines(
    data: MELDataModule,
    split: str,
    folder: Path,
    encoder: Encoder | None = None,
    chosen: Sequence[str] = tuple(BASELINES),
    top_k: int = 10,
    device: str = "cpu",
) -> dict[str, Any]:
    """Rank the knowledge base for a split's mentions by each baseline, print a table and write the results.

    Below the folder, ``baselines.json`` holds all figures, and a folder for each baseline what ``mimic-pl test`` leaves
    in a run's: ``predictions.jsonl`` and ``metrics.json``.

    Args:
        data: The data, with its processor; with an encoder, one that is connected to it.
        split: ``val`` or ``test``.
        folder: Where the results go.
        encoder: For the cosines; they are left out without one. Those of images are left out where one side has none.
        chosen: Which of :data:`BASELINES`.
        top_k: Candidates of each mention that are written.
        device: Where the encoder computes, as torch calls it.

    Returns:
        What ``baselines.json`` holds.

    Raises:
        ConfigError: There is no such baseline, nothing to rank by is left, or no candidates are asked for.
        DataError: The data cannot be read.
    """
    unknown = sorted(set(chosen) - set(BASELINES))
    if unknown or not chosen:
        raise ConfigError(f"There are no baselines {unknown}. There are: {', '.join(BASELINES)}.")
    if top_k < 1:
        raise ConfigError(f"top_k is {top_k}; at least one candidate of each mention is written.")
    with_encoder = encoder if set(chosen) & set(COSINES) else None
    side = _read(data, split, with_encoder)
    images: dict[str, int] = {}
    scorers = _lexical(data, side)
    if with_encoder is not None:
        scorers |= _cosines(data, split, with_encoder, device, images)
    summary = _describe(data, split, side) | images
    published = data.published.test if split == "test" and data.published is not None else None
    console = Console()
    left_out = [name for name in BASELINES if name in chosen and name not in scorers]
    if len(left_out) == len(set(chosen)):
        raise ConfigError(f"Nothing is left to rank by: {', '.join(left_out)} {_reason(encoder)}.")
    metrics: dict[str, dict[str, float]] = {}
    for name in (name for name in BASELINES if name in chosen and name in scorers):
        metrics[name] = _rank_and_write(name, scorers[name](), side, folder / name, top_k, summary)
    title = f"{type(data).__name__}, {'test' if split == 'test' else 'validation'}: no training"
    console.print(result_table(title, metrics, published, _caption(summary)))
    if left_out:
        console.print(f"Left out: {', '.join(left_out)}, which {_reason(encoder)}.", highlight=False)
    told = {**summary, "baselines": {name: {"what": BASELINES[name], **metrics[name]} for name in metrics}}
    write_file(folder / "baselines.json", (json.dumps(told, indent=2, ensure_ascii=False) + "\n").encode())
    return told


def _read(data: MELDataModule, split: str, encoder: Encoder | None) -> _Side:
    """Read the records; for an encoder with tokens and images, too."""
    data.check_root(data.root)
    data.prepare_data()
    if encoder is None:
        return _Side(data.read_mentions(split), as_table(data.read_entities()))
    data.setup("test" if split == "test" else "validate")
    return _Side(data.mentions[split], data.entities)


def _lexical(data: MELDataModule, side: _Side) -> dict[str, _Lazy]:
    # The fields that the model reads, without the separator between them, which is no word of the data.
    mention = TextTemplate(data.processor.mention_template.template.replace("[SEP]", " "))
    entity = TextTemplate(data.processor.entity_template.template.replace("[SEP]", " "))
    return {
        "exact_name": lambda: ExactName(side.mentions, side.entities),
        "name_similarity": lambda: NameSimilarity(side.mentions, side.entities),
        "bm25": lambda: BM25(
            [mention(record) for record in side.mentions], (entity(record) for record in side.entities)
        ),
    }


def _cosines(
    data: MELDataModule, split: str, encoder: Encoder, device: str, images: dict[str, int]
) -> dict[str, _Lazy]:
    mentions, entities = embed(encoder, data, split, device)
    images |= {"mentions_with_image": mentions.with_image, "entities_with_image": entities.with_image}
    found: dict[str, _Lazy] = {"text_cosine": lambda: Cosine([mentions.text], [entities.text])}
    if mentions.with_image and entities.with_image:
        found["image_cosine"] = lambda: Cosine([mentions.image], [entities.image])
        both = [mentions.text, mentions.image], [entities.text, entities.image]
        found["both_cosines"] = lambda: Cosine(*both)
    return found


def _describe(data: MELDataModule, split: str, side: _Side) -> dict[str, Any]:
    """What was ranked, and how much of it names alone tell."""
    positions = side.entities.positions
    golds = [{side.entities[positions[gold]].name for gold in m.golds if gold in positions} for m in side.mentions]
    pairs = list(zip(side.mentions, golds, strict=True))
    exact = sum(mention.mention in names for mention, names in pairs)
    lower = sum(mention.mention.lower() in {name.lower() for name in names} for mention, names in pairs)
    return {
        "data": type(data).__name__,
        "root": data.root,
        "split": split,
        "mentions": len(side.mentions),
        "mentions_without_gold_in_kb": missing_golds(side.mentions, side.entities),
        "entities": len(side.entities),
        "mentions_that_are_the_golds_name": round(exact / len(side.mentions), 7),
        "the_same_lower_cased": round(lower / len(side.mentions), 7),
        "text": {
            "mention": data.processor.mention_template.template,
            "entity": data.processor.entity_template.template,
        },
    }


def _caption(summary: dict[str, Any]) -> str:
    caption = f"{summary['mentions']:,} mentions, ranked among {summary['entities']:,} entities"
    if missing := summary["mentions_without_gold_in_kb"]:
        caption += f"; {missing:,} without a gold in the knowledge base count as misses"
    caption += (
        f"; {100 * summary['mentions_that_are_the_golds_name']:.1f} % of the mentions equal the gold's name "
        f"({100 * summary['the_same_lower_cased']:.1f} % lower-cased)"
    )
    if "mentions_with_image" in summary:
        caption += (
            f"; {summary['mentions_with_image']:,} mentions and {summary['entities_with_image']:,} entities have a "
            "image"
        )
    return caption


def _reason(encoder: Encoder | None) -> str:
    """Why cosines are left out."""
    if encoder is None:
        return "need an encoder: give a configuration with a 'model' section (--config)"
    return "need images, and no image of the mentions or of the entities opens"


def _rank_and_write(
    name: str, scorer: BlockScorer, side: _Side, folder: Path, top_k: int, summary: dict[str, Any]
) -> dict[str, float]:
    """Rank by one baseline and write its folder; its metrics come back."""
    positions, num_entities = side.entities.positions, len(side.entities)
    golds = [[positions[gold] for gold in mention.golds if gold in positions] for mention in side.mentions]
    metrics = rank_metrics("test/")
    lines: list[str] = []
    bar = tqdm(total=len(golds), desc=f"Ranking by {name}", unit="mention", leave=False, disable=None)
    for ranking in rank_all(scorer, golds, num_entities, top_k):
        metrics.update(ranking.ranks["overall"], num_entities=num_entities)
        for rank, candidates in zip(
            ranking.ranks["overall"].tolist(), candidate_lists(ranking, side.entities, top_k), strict=True
        ):
            record = prediction(side.mentions[len(lines)], side.entities, candidates, {"overall": rank})
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        bar.update(len(ranking.top_entities))
    bar.close()
    by_score = metrics_by_score(metrics.compute(), "test")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "predictions.jsonl", "".join(lines).encode())
    about = {"checkpoint": None, "baseline": name, **summary, "metrics": by_score}
    write_file(folder / "metrics.json", (json.dumps(about, indent=2, ensure_ascii=False) + "\n").encode())
    return by_score["overall"]
