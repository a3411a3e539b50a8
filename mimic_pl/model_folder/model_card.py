"""The model card: what a model is, what it was trained and tested on, its results and limits, as the hub shows it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from mimic_pl import __version__
from mimic_pl.escaping import markdown_text
from mimic_pl.files import readable_bytes
from mimic_pl.model_folder.encoder_facts import checkpoint_names, on_hub

if TYPE_CHECKING:
    from mimic_pl.model import MIMIC

_TAGS = ["entity-linking", "multimodal-entity-linking", "mimic", "pytorch-lightning"]

METRICS = {"hits@1": "H@1", "hits@3": "H@3", "hits@5": "H@5", "mrr": "MRR", "mr": "Mean rank"}
"""Metrics in a card by their names in ``metrics.json``, with their titles."""


class Interval(NamedTuple):
    """A 95 % confidence interval."""

    low: float
    high: float


@dataclass(frozen=True)
class CardFacts:
    """What a model card says beside what the model itself shows. Everything may be unknown.

    Attributes:
        name: Name of the model.
        license: Licence of the weights, as the hub abbreviates it (``apache-2.0``).
        dataset: Name of the data that it was tested on.
        mentions: Number of test mentions.
        entities: Size of the knowledge base.
        results: Test metrics by the names of :data:`METRICS`, fractions between 0 and 1 and the mean rank.
        intervals: Intervals of some of them, over test mentions.
        baselines: Metrics of other methods on the same data, by name.
        published: Published metrics of MIMIC on this data set.
        epochs: Epochs of training, as text (``38 of 60``).
        seed: Seed of the training.
        seconds: Duration of the training.
        trained_with: Program that trained it, with its version.
        calibrated: Whether scores are converted to probabilities by ``calibration.json``.
    """

    name: str = "MIMIC"
    license: str | None = None
    dataset: str | None = None
    mentions: int | None = None
    entities: int | None = None
    results: dict[str, float] = field(default_factory=dict)
    intervals: dict[str, Interval] = field(default_factory=dict)
    baselines: dict[str, dict[str, float]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)
    epochs: str | None = None
    seed: str | None = None
    seconds: float | None = None
    trained_with: str | None = None
    calibrated: bool = False


def model_card(model: MIMIC, facts: CardFacts, size: int) -> str:
    """Render the model card, Markdown with metadata that the hub reads.

    Args:
        model: The model.
        facts: What is known beside it.
        size: Bytes of all files that are loaded.
    """
    started_from = checkpoint_names(model.encoder)
    card = ModelCard.from_template(
        ModelCardData(
            model_name=facts.name,
            license=facts.license,
            library_name="mimic-pl",
            tags=_TAGS,
            base_model=[name for name in started_from if on_hub(name)] or None,
            eval_results=_eval_results(facts) or None,
        ),
        template_str=files(__package__).joinpath("model_card.md.jinja").read_text(encoding="utf-8"),
        facts=facts,
        text=markdown_text,
        size=readable_bytes(size),
        version=__version__,
        parameters=f"{sum(own.numel() for own in model.parameters()):,}",
        encoder=type(model.encoder).__name__,
        started_from=[markdown_text(name) for name in started_from],
        units=[(name, type(unit).__name__) for name, unit in model.matcher.named_units()],
        processor=model.processor,
        image_size=model.processor.image_processor.image_size,
        text_length=model.encoder.text_length,
        metrics=METRICS,
        rows=_rows(facts),
        duration=None if facts.seconds is None else readable_duration(facts.seconds),
        mention_example=_example(model.processor.mention_template.fields, {"mention": "Jordan"}, "sentence"),
        entity_example=_example(
            model.processor.entity_template.fields, {"id": "Q41421", "name": "Michael Jordan"}, "attr"
        ),
    )
    return f"{str(card).rstrip()}\n"


def readable_duration(seconds: float) -> str:
    """A duration in words: ``2 h 13 min``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    parts = [(hours, "h"), (minutes, "min"), (rest, "s")]
    shown = [f"{number} {unit}" for number, unit in parts if number][:2]
    return " ".join(shown) or "less than a second"


def figure(metric: str, value: float | None, interval: Interval | None = None) -> str:
    """A metric as text: percent with one decimal and its interval, or the mean rank; empty for None."""
    if value is None:
        return ""
    if metric == "mr":
        return f"{value:.1f}"
    shown = f"{100 * value:.1f}"
    return shown if interval is None else f"{shown} ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _rows(facts: CardFacts) -> list[tuple[str, list[str]]]:
    """Rows of the table of results: this model, other methods, the published model."""
    rows = [(f"**{markdown_text(facts.name)}**", facts.results, facts.intervals)]
    rows += [(markdown_text(name), own, {}) for name, own in facts.baselines.items()]
    if facts.published:
        rows.append(("MIMIC, published (Luo et al., 2023)", facts.published, {}))
    return [(name, [figure(key, own.get(key), ranges.get(key)) for key in METRICS]) for name, own, ranges in rows]


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    if facts.dataset is None:
        return []
    kind = re.sub(r"[^a-z0-9]+", "-", facts.dataset.lower()).strip("-")
    return [
        EvalResult(
            task_type="entity-linking",
            task_name="Multimodal entity linking",
            dataset_name=facts.dataset,
            dataset_type=kind,
            dataset_split="test",
            metric_type=key,
            metric_name=METRICS[key],
            metric_value=facts.results[key],
        )
        for key in METRICS
        if key in facts.results
    ]


def _example(fields: list[str], values: dict[str, str], main: str) -> str:
    """A record with the fields of a template, for the code in the card."""
    texts = {"sentence": "Jordan scored 30 points against the Knicks.", "attr": "American basketball player"}
    wanted = dict.fromkeys([*values, *fields])
    return json.dumps({name: values.get(name) or texts.get(name) or texts[main] for name in wanted})
