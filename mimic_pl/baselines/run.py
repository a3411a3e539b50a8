"""Running all baselines on a data set."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from tqdm.auto import tqdm

from mimic_pl.baselines.bm25 import BM25
from mimic_pl.baselines.names import ExactName, NameSimilarity
from mimic_pl.baselines.ranking import BlockScorer, rank_all
from mimic_pl.baselines.zero_shot import Cosine, embed
from mimic_pl.callbacks.predictions import candidate_lists, prediction, write_metrics
from mimic_pl.callbacks.results import metrics_by_score, missing_golds
from mimic_pl.callbacks.tables import result_table
from mimic_pl.data import MELDataModule, Mention
from mimic_pl.data.table import EntityTable, as_table
from mimic_pl.encoders import Encoder
from mimic_pl.errors import ConfigError
from mimic_pl.files import lock_folder, write_file
from mimic_pl.metrics import rank_metrics
from mimic_pl.processor.template import TextTemplate
from mimic_pl.ranges import COUNT, require_ranges

BASELINES = {
    "exact_name": "whether the mention equals the entity's name exactly",
    "name_similarity": "normalised Indel similarity of mention and name, lower-cased",
    "bm25": "BM25 of the mention's text against the entity's",
    "text_cosine": "zero-shot cosine of the encoder's text embeddings",
    "image_cosine": "zero-shot cosine of the encoder's image embeddings",
    "both_cosines": "mean of the two cosines",
}
"""Score of each baseline, in printing order. The cosines need an encoder."""

COSINES = ("text_cosine", "image_cosine", "both_cosines")

_Lazy = Callable[[], BlockScorer]


class _Records(NamedTuple):
    """Mentions of the split, and the knowledge base."""

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
    """Rank the knowledge base for the mentions of a split by each baseline, print a table and write the results.

    The folder gets ``baselines.json`` with all metrics, and a folder per baseline with the files that ``mimic-pl test``
    writes for a run: ``predictions.jsonl`` and ``metrics.json``.

    Args:
        data: The data, with its processor, which is connected to the encoder if there is one.
        split: ``val`` or ``test``.
        folder: Output folder.
        encoder: Encoder for the cosines, which are skipped without it. Image cosines are also skipped if one side has
            no images.
        chosen: Names of the :data:`BASELINES` to run.
        top_k: Number of candidates per mention to write.
        device: Torch device of the encoder.

    Returns:
        Content of ``baselines.json``.

    Raises:
        ConfigError: A baseline is unknown, none can be run, or ``top_k`` is below 1.
        DataError: The data cannot be read.
        StoreError: Another process is writing to the folder, the disk is full, or the folder is not writable.
    """
    unknown = sorted(set(chosen) - set(BASELINES))
    if unknown or not chosen:
        raise ConfigError(f"Unknown baselines {unknown}. Choose from: {', '.join(BASELINES)}.")
    require_ranges({"top_k": COUNT}, {"top_k": top_k}, "")
    with_encoder = encoder if set(chosen) & set(COSINES) else None
    records = _read(data, split, with_encoder)
    images: dict[str, int] = {}
    scorers = _lexical(data, records)
    if with_encoder is not None:
        scorers |= _cosines(data, split, with_encoder, device, images)
    summary = _describe(data, split, records) | images
    published = data.published.test if split == "test" and data.published is not None else None
    console = Console()
    skipped = [name for name in BASELINES if name in chosen and name not in scorers]
    if len(skipped) == len(set(chosen)):
        raise ConfigError(f"No baseline can be run: {', '.join(skipped)} {_reason(encoder)}.")
    metrics: dict[str, dict[str, float]] = {}
    with ExitStack() as resources:
        resources.callback(lock_folder(folder, 0, ".baselines.lock").release)
        for name in (name for name in BASELINES if name in chosen and name in scorers):
            metrics[name] = _rank_and_write(name, scorers[name](), records, folder / name, top_k, summary)
        results = {**summary, "baselines": {name: {"what": BASELINES[name], **metrics[name]} for name in metrics}}
        write_file(folder / "baselines.json", (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    title = f"{type(data).__name__}, {'test' if split == 'test' else 'validation'}: no training"
    console.print(result_table(title, metrics, published, _caption(summary)))
    if skipped:
        console.print(f"Skipped: {', '.join(skipped)}, which {_reason(encoder)}.", highlight=False)
    return results


def _read(data: MELDataModule, split: str, encoder: Encoder | None) -> _Records:
    """Read the records, and set up tokens and images if there is an encoder."""
    data.check_root(data.root)
    data.prepare_data()
    if encoder is None:
        return _Records(data.split_mentions(split), as_table(data.read_entities()))
    data.setup("test" if split == "test" else "validate")
    return _Records(data.mentions[split], data.entities)


def _lexical(data: MELDataModule, records: _Records) -> dict[str, _Lazy]:
    # The fields that the model reads, without separators, which are not words.
    mention = TextTemplate(data.processor.mention_template.template.replace("[SEP]", " "))
    entity = TextTemplate(data.processor.entity_template.template.replace("[SEP]", " "))
    return {
        "exact_name": lambda: ExactName(records.mentions, records.entities),
        "name_similarity": lambda: NameSimilarity(records.mentions, records.entities),
        "bm25": lambda: BM25(
            [mention(record) for record in records.mentions], (entity(record) for record in records.entities)
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


def _describe(data: MELDataModule, split: str, records: _Records) -> dict[str, Any]:
    """Statistics of the data, including how many mentions equal a gold's name."""
    mentions, entities = records
    positions = entities.positions
    golds = [{entities[positions[gold]].name for gold in m.golds if gold in positions} for m in mentions]
    pairs = list(zip(mentions, golds, strict=True))
    exact = sum(mention.mention in names for mention, names in pairs)
    lower = sum(mention.mention.lower() in {name.lower() for name in names} for mention, names in pairs)
    return {
        "data": type(data).__name__,
        "root": data.root,
        "split": split,
        "mentions": len(mentions),
        "mentions_without_gold_in_kb": missing_golds(mentions, entities),
        "entities": len(entities),
        "mentions_that_are_the_golds_name": round(exact / len(mentions), 7),
        "the_same_lower_cased": round(lower / len(mentions), 7),
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
            f"; {summary['mentions_with_image']:,} mentions and {summary['entities_with_image']:,} entities have an "
            "image"
        )
    return caption


def _reason(encoder: Encoder | None) -> str:
    """Why cosines are skipped."""
    if encoder is None:
        return "need an encoder: give a configuration with a 'model' section (--config)"
    return "need images, but no image of the mentions or of the entities can be opened"


def _rank_and_write(
    name: str, scorer: BlockScorer, records: _Records, folder: Path, top_k: int, summary: dict[str, Any]
) -> dict[str, float]:
    """Rank by one baseline, write its folder, and return its metrics."""
    mentions, entities = records
    positions, num_entities = entities.positions, len(entities)
    golds = [[positions[gold] for gold in mention.golds if gold in positions] for mention in mentions]
    metrics = rank_metrics("test/")
    lines: list[str] = []
    bar = tqdm(total=len(golds), desc=f"Ranking by {name}", unit="mention", leave=False, disable=None)
    for ranking in rank_all(scorer, golds, num_entities, top_k):
        metrics.update(ranking.ranks["overall"], num_entities=num_entities)
        for rank, candidates in zip(
            ranking.ranks["overall"].tolist(), candidate_lists(ranking, entities, top_k), strict=True
        ):
            record = prediction(mentions[len(lines)], entities, candidates, {"overall": rank})
            lines.append(json.dumps(record, ensure_ascii=False) + "\n")
        bar.update(len(ranking.top_entities))
    bar.close()
    by_score = metrics_by_score(metrics.compute(), "test")
    folder.mkdir(parents=True, exist_ok=True)
    write_file(folder / "predictions.jsonl", "".join(lines).encode())
    summary = {"checkpoint": None, "baseline": name, **summary, "metrics": by_score}
    write_metrics(folder / "predictions.jsonl", summary)
    return by_score["overall"]
