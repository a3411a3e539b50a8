"""A self-contained HTML page of a run's worst mentions."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mimic_pl.checkpoints.atomic_io import write_run_file
from mimic_pl.evaluated_run import EvaluatedRun
from mimic_pl.linking.thumbnails import data_uri, heat_map
from mimic_pl.ranges import COUNT, require_ranges
from mimic_pl.report.loaded import LoadedRun
from mimic_pl.report.page_parts import environment, excerpt, image_uri, marked, shaded
from mimic_pl.report.worst import Case, RankedEntity, worst_cases


def write_errors_page(run: EvaluatedRun, path: str | Path, worst: int = 50) -> Path:
    """Write the page: each mention with image, gold, candidates, scores and attention.

    Images are embedded as thumbnails, and all text is escaped, so that no script in a data set is executed.

    Args:
        run: A tested run with its checkpoint and its data.
        path: File to write.
        worst: Maximum number of mentions.

    Raises:
        ConfigError: ``worst`` is below 1, the run has no checkpoint, or its data does not exist.
        DataError: The data differs from what was tested.
        MachineError: The disk is full, or the folder is not writable; an earlier file is intact.
    """
    require_ranges({"worst": COUNT}, {"worst": worst}, "")  # before the model loads
    loaded = LoadedRun(run)
    page = render(loaded, worst_cases(loaded, worst))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_run_file(path, page.encode())
    return path


def render(loaded: LoadedRun, cases: Sequence[Case]) -> str:
    """Render the page of these cases."""
    run = loaded.run
    shown = [case_values(loaded, case) for case in cases]
    return (
        environment()
        .get_template("errors.html.jinja")
        .render(
            run=str(run.folder),
            data=run.summary.get("data", ""),
            mentions=run.summary["mentions"],
            entities=run.summary["entities"],
            without_gold=run.summary.get("mentions_without_gold_in_kb", 0),
            mention_template=loaded.model.processor.mention_template.template,
            entity_template=loaded.model.processor.entity_template.template,
            hits={score: metrics["hits@1"] for score, metrics in run.metrics.items() if "hits@1" in metrics},
            wrong=int((run.predictions.ranks["overall"] > 1).sum()),
            right_alone=_right_alone(run),
            cases=shown,
            names=list(shown[0]["gold"]["scores"]) if shown else [],
            has_words=any(case["gold"]["words"] for case in shown),
            has_heat=any(case["heat"] for case in shown),
        )
    )


def _right_alone(run: EvaluatedRun) -> dict[str, float]:
    """For each unit, the fraction of wrongly linked mentions that are correct by its score alone."""
    ranks = run.predictions.ranks
    wrong = ranks["overall"] > 1
    if not wrong.any():
        return {}
    return {name: float((own[wrong] == 1).mean()) for name, own in ranks.items() if name != "overall"}


def case_values(loaded: LoadedRun, case: Case) -> dict[str, Any]:
    """Values of a case for the template."""
    image = loaded.data.mention_image(case.mention)
    before, word, after = marked(case.mention)
    heat = None
    if image is not None and case.patches is not None:
        heat = data_uri(heat_map(image, case.patches.grid))
    return {
        "id": case.mention.id,
        "mention": case.mention.mention,
        "before": before,
        "word": word,
        "after": after,
        "image": image_uri(image),
        "heat": heat,
        "rest": case.patches.rest if case.patches is not None else 0.0,
        "rank": case.rank,
        "margin": case.margin,
        "gold": _entity(loaded, case.gold),
        "candidates": [_entity(loaded, candidate) for candidate in case.candidates],
    }


def _entity(loaded: LoadedRun, shown: RankedEntity) -> dict[str, Any]:
    return {
        "qid": shown.entity.id,
        "name": shown.entity.name,
        "text": excerpt(loaded.data.processor.entity_text(shown.entity)),
        "image": image_uri(loaded.data.entity_image(shown.entity)),
        "rank": shown.rank,
        "gold": shown.gold,
        "scores": shown.scores,
        "words": shaded(shown.words),
    }
